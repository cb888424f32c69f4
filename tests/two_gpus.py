"""
Two GPUs beside one, on a machine that has them: python tests/two_gpus.py [steps] [flags]

Speed: GPT-2 124M on one GPU, and on two with ddp and with fsdp, which gathers blocks once a step or (fsdp-reshard) for each
pass. Then GPT-2 XL with fsdp. In bfloat16 a sum in another order may round to another number, and early in training such
differences grow: the losses of two GPUs are near those of one, no more.

Curve: one, ddp and fsdp again with 4 layers in float32, without TF32, so that the order of the sums is all that differs. The
losses of two GPUs must be those of one to 1e-3 at every step: else the exit code is 1.

Accumulation, so that the micro-batches of one GPU are those of two. About eight minutes. What an arm says is in
out/two-gpus/NAME.txt; one that fails or hangs leaves the others alone, and makes the exit code 1. On CPUs a trial takes a minute:

    python tests/two_gpus.py 31 --n_layer=2 --n_head=2 --n_embd=64 --block_size=64 --vocab_size=1088 --batch_size=4 --dtype=bfloat16
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / 'out' / 'two-gpus'
LONGEST = 200  # seconds of an arm; more of them waits for a process that does not answer
COMMON = ['--dataset=shakespeare_char', '--vocab_size=50304', '--save_checkpoint=false', '--eval_iters=1', '--eval_interval=9999',
          '--log_interval=5', '--warmup_iters=20', '--cuda_graph=false']  # fmt: skip
ONE = [sys.executable]
# a machine without a network may not know its own name, by which the processes would look for each other without end
TWO = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--local-addr=127.0.0.1', '--nproc_per_node=2']
SMALL = ['config/gpt2.py', '--batch_size=32', '--gradient_accumulation_steps=4']
EXACT = ['config/gpt2.py', '--n_layer=4', '--batch_size=2', '--gradient_accumulation_steps=4']
XL = ['config/gpt2_xl.py', '--batch_size=8', '--gradient_accumulation_steps=4', '--activation_checkpointing=true']
WAYS = {
    'one': [*ONE, 'train.py'],
    'ddp': [*TWO, 'train.py', '--parallel=ddp'],
    'fsdp': [*TWO, 'train.py', '--parallel=fsdp'],
    'fsdp-reshard': [*TWO, 'train.py', '--parallel=fsdp', '--reshard_after_forward=true'],
}
ARMS = {name: [*way, *SMALL] for name, way in WAYS.items()}
ARMS['xl-fsdp'] = [*WAYS['fsdp'], *XL]
ARMS |= {f'{name}-float32': [*WAYS[name], *EXACT] for name in ('one', 'ddp', 'fsdp')}
BOUND = 1e-3  # largest difference of the losses in float32


def run(name: str, command: list, steps: int, flags: list) -> list[dict]:
    ends = [f'--max_iters={steps}', f'--lr_decay_iters={steps}', f'--out_dir={OUT / name}']
    env = dict(os.environ)
    if name.endswith('float32'):
        ends += ['--dtype=float32', '--log_interval=1']
        env['NVIDIA_TF32_OVERRIDE'] = '0'  # cuBLAS reads it: train.py asks for TF32 in products of float32
    OUT.mkdir(parents=True, exist_ok=True)
    said = OUT / f'{name}.txt'
    with open(said, 'w') as f:
        started = dict(cwd=ROOT, env=env, stdout=f, stderr=f, start_new_session=True)
        p = subprocess.Popen([*command, *COMMON, *flags, *ends], **started)
        try:
            code = p.wait(LONGEST)
        except subprocess.TimeoutExpired:
            code = f'stopped after {LONGEST} s'
        finally:  # torchrun's processes too, which would keep the GPUs
            if p.poll() is None:
                os.killpg(p.pid, signal.SIGKILL)
                p.wait()
    if code:
        text = said.read_text(errors='replace')
        print(f'{name} failed: {code}\n{text[:2000]}\n[...]\n{text[-6000:]}', flush=True)
        return []
    lines = [json.loads(line) for line in (OUT / name / 'metrics.jsonl').read_text().splitlines()]
    return [m for m in lines if m['kind'] == 'train']


if __name__ == '__main__':
    steps, flags = int((sys.argv[1:] or [101])[0]), sys.argv[2:]
    ones, failed = {}, []  # ones: {whether in float32: the lines of one GPU}
    for name, command in ARMS.items():
        if not (found := run(name, command, 21 if name == 'xl-fsdp' else steps, flags)):
            failed.append(name)
            continue
        exact = name.endswith('float32')
        if name.startswith('one'):
            ones[exact] = found
        rate = lambda lines: median(m['tokens_per_s'] for m in lines[len(lines) // 3 :])
        memory = json.loads((OUT / name / 'manifest.json').read_text())['peak_memory'] / 2**30
        text = f'{name}: {rate(found):,.0f} tok/s, {memory:.1f} GiB, last loss {found[-1]["loss"]:.4f}'
        if not name.startswith(('one', 'xl')) and (first := ones.get(exact)):
            off = max(abs(a['loss'] - b['loss']) for a, b in zip(first, found))
            text += f'; {rate(found) / rate(first):.2f} times the speed of one, losses differ by at most {off:.1e}'
            if exact:
                text += f' over {len(found)} steps, allowed are {BOUND:.0e}'
                if not (off <= BOUND and len(found) == len(first) == steps):
                    failed.append(name)
        print(text, flush=True)
    sys.exit(f'failed: {", ".join(failed)}' if failed else 0)
