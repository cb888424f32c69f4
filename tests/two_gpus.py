"""
Two GPUs beside one, on a machine that has them: python tests/two_gpus.py [steps]

GPT-2 124M on one GPU, and on two with ddp and with fsdp: the largest difference of the losses from those of one GPU, and tokens
per second. Then GPT-2 XL with fsdp. Accumulation, so that the micro-batches of one GPU are those of two. About six minutes.
"""

import json
import subprocess
import sys
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / 'out' / 'two-gpus'
COMMON = ['--dataset=shakespeare_char', '--vocab_size=50304', '--save_checkpoint=false', '--eval_iters=1', '--eval_interval=9999',
          '--log_interval=5', '--warmup_iters=20', '--cuda_graph=false']  # fmt: skip
ONE = [sys.executable]
TWO = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
SMALL = ['config/gpt2.py', '--batch_size=32', '--gradient_accumulation_steps=4']
XL = ['config/gpt2_xl.py', '--batch_size=8', '--gradient_accumulation_steps=4', '--activation_checkpointing=true']
ARMS = {
    'one': [*ONE, 'train.py', *SMALL],
    'ddp': [*TWO, 'train.py', *SMALL],
    'fsdp': [*TWO, 'train.py', *SMALL, '--parallel=fsdp'],
    'xl-fsdp': [*TWO, 'train.py', *XL, '--parallel=fsdp'],
}


def run(name: str, command: list, steps: int) -> list[dict]:
    ends = [f'--max_iters={steps}', f'--lr_decay_iters={steps}', f'--out_dir={OUT / name}']
    r = subprocess.run([*command, *COMMON, *ends], cwd=ROOT, capture_output=True, text=True)
    if r.returncode:
        print(f'{name} failed\n{r.stdout[-2000:]}\n{r.stderr[-4000:]}', flush=True)
        return []
    lines = [json.loads(line) for line in (OUT / name / 'metrics.jsonl').read_text().splitlines()]
    return [m for m in lines if m['kind'] == 'train']


if __name__ == '__main__':
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 101
    first = None
    for name, command in ARMS.items():
        if not (found := run(name, command, 21 if name == 'xl-fsdp' else steps)):
            continue
        first = first or found
        rate = lambda lines: median(m['tokens_per_s'] for m in lines[len(lines) // 3 :])
        memory = json.loads((OUT / name / 'manifest.json').read_text())['peak_memory'] / 2**30
        text = f'{name}: {rate(found):,.0f} tok/s, {memory:.1f} GiB, last loss {found[-1]["loss"]:.4f}'
        if name in ('ddp', 'fsdp'):
            off = max(abs(a['loss'] - b['loss']) for a, b in zip(first, found))
            text += f'; {rate(found) / rate(first):.2f} times the speed of one, losses differ by at most {off:.1e}'
        print(text, flush=True)
