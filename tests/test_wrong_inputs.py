"""Wrong inputs of every script: each ends with its exit code and one line that says what is wrong, and leaves nothing."""

import os
import runpy
import sys
import zipfile

import pytest
from conftest import ROOT, TINY

from configurator import load
from train import TrainConfig, train

SMALL = ' '.join([*TINY, '--out_dir={tmp}/none'])  # the tests of other workers may hold out/

# (command, what the message must hold); {tmp} is a folder with the files of the fixture `files`, {ckpt} a checkpoint
CASES = [
    # flags
    ('train.py --n_head=0', 'n_head = 0 on the command line: must be at least 1'),
    ('train.py --n_layer=2e7', 'n_layer = 2e7 on the command line: must be at most 10000'),
    ('train.py --n_embd=1e9 --n_head=1', 'a model of 1.4e+20 parameters'),
    ('train.py --n_embd=1e30', 'must be at most 2147483648'),
    ('train.py --mlp_expansion_factor=1e300', 'a model of'),
    ('train.py --mlp_expansion_factor=0', 'mlp_expansion_factor = 0.0: must be above 0'),
    ('train.py --mlp_expansion_factor=4,4', 'must be one number or n_layer (12) of them, not 2'),
    ('train.py --multiple_of=1e10', 'multiple_of = 1e10 on the command line: must be at most'),
    ('train.py --block_size=-1', 'block_size = -1 on the command line: must be at least 1'),
    ('train.py --batch_size=1e300', 'must be at most'),
    ('train.py --max_iters=nan', 'must be of type int'),
    ('train.py --max_iters=inf', 'must be of type int'),
    ('train.py --learning_rate=inf', 'must be a finite number'),
    ('train.py --learning_rate=nan', 'must be a finite number'),
    ('train.py --learning_rate=-1', 'must be above 0'),
    ('train.py --dropout=1', 'must be at most 0.999'),
    ('train.py --n_embd=100 --n_head=7', 'near: n_head = 4, 5, 10'),
    ('train.py --n_kv_head=5', 'n_kv_head = 5: must divide n_head'),
    ('train.py --position=rope --n_embd=36', 'must be even'),
    ('train.py --linear=tensor_train --tt_cores=0', 'tt_cores = 0 on the command line: must be at least 2'),
    ('train.py --linear=tensor_train --tt_cores=1e6', 'tt_cores = 1e6 on the command line: must be at most 32'),
    ('train.py --linear=low_rank --rank=1e6', 'rank = 1000000'),
    ('train.py --linear=monarch --blocks=7', 'blocks = 7'),
    ('train.py --linear=kronecker --kronecker_shape=5,7', 'kronecker_shape'),
    ('train.py --linear=kronecker --kronecker_shape=4', 'kronecker_shape = 4: must be 2 positive integers'),
    ('train.py --linear=lowrank', "did you mean 'low_rank'"),
    ('train.py --linear=expanded --linear_layers=mpl', "'mpl' matches no layer"),
    ('train.py --mlp=moe --experts=2 --experts_active=3', 'experts_active = 3: must be at most experts (2)'),
    ('train.py --compile=maybe', 'must be of type bool'),
    ('train.py --no-compile', "unknown key 'no_compile' on the command line; write --compile=false"),
    ('train.py --no-such-thing', "unknown key 'no_such_thing' on the command line; --help lists the keys"),
    ('train.py --lerning_rate=1', "did you mean 'learning_rate'"),
    ('train.py --learning_rate', '--learning_rate has no value; write --learning_rate=VALUE'),
    ('train.py -n 3', "'-n': a flag is written --key=value"),
    ('train.py --seed_model=-1', 'seed_model = -1'),
    ('train.py --ddp_timeout=0', 'ddp_timeout = 0 on the command line: must be at least 1'),
    ('train.py --gradient_accumulation_steps=0', 'must be at least 1'),
    ('train.py --out_dir=', 'out_dir: must name a folder'),
    ('train.py --dtype=float8', 'must be one of auto, float32'),
    ('train.py --init_from=transfer', 'transfer_from: must be given'),
    ('train.py --distill_weight=0', 'must be above 0'),
    # config files
    ('train.py config/shakespear_char.py', "did you mean 'config/shakespeare_char.py'"),
    ('train.py /dev/zero', 'cannot read config file /dev/zero (not a file)'),
    ('train.py {tmp}/fifo', '(not a file)'),
    ('train.py config/train_gpt2.py', "did you mean 'config/gpt2.py'"),  # nanoGPT's name
    ('compare.py config/demo.py', "did you mean 'config/compare/demo.py'"),
    ('sample.py {tmp}', '; a folder is given by a key, such as --out_dir=FOLDER'),
    ('sample.py {ckpt}', '; a checkpoint is given by a key, such as --checkpoint=FILE'),
    ('train.py {tmp}/big.py', 'longer than 1,048,576 bytes'),
    ('train.py {tmp}/binary.py', 'not text'),
    ('train.py {tmp}/syntax.py', 'syntax.py, line 2: SyntaxError'),
    ('train.py {tmp}/raises.py', 'raises.py, line 1: ZeroDivisionError'),
    ('train.py {tmp}/loop.py', 'loop.py includes itself, by way of loop.py'),
    ('train.py {tmp}/nul.py', "dataset = 'a\\x00b' in nul.py: must not hold a NUL character"),
    ('train.py {tmp}/tuple.py', 'must have at most 10,000 numbers, not 100,000'),
    ('train.py {tmp}/digits.py', 'n_layer = a huge int in digits.py'),
    ('train.py {tmp}/values.py', 'n_embd = [] in values.py: must be of type int'),
    ('train.py config/compare/demo.py', 'is the config of another script, such as compare.py'),
    ('train.py config/track/monarch.py', 'is the config of another script, such as compare.py'),
    # paths
    ('train.py ~nobodyatall/c.py', 'there is no such user'),
    (f'train.py {"x" * 300}.py', 'is too long'),
    (f'train.py {SMALL} --out_dir={{tmp}}/\udcff', 'is not UTF-8; rename it'),
    ('sample.py --checkpoint={tmp}/\udcff.pt', 'is not UTF-8; rename it'),
    (f'train.py {SMALL} --dataset={"x" * 300}', 'is too long'),
    (f'train.py {SMALL} --dataset=nowhere', "dataset = 'nowhere': neither train.bin"),
    (f'train.py {SMALL} --init_from=nowhere.pt', 'no checkpoint at'),
    (f'train.py {SMALL} --init_from=~nobodyatall/x.pt', 'there is no such user'),
    (f'train.py {SMALL} --init_from=resume --out_dir={{tmp}}/none', 'no checkpoint at'),
    (f'train.py {SMALL} --init_from={{tmp}}/binary.py', 'binary.py'),
    (f'train.py {SMALL} --out_dir={{tmp}}/big.py', 'choose another --out_dir'),
    (f'train.py {SMALL} --device=cuda:99', "device = 'cuda:99'"),
    (f'train.py {SMALL} --dtype=float16', 'needs a CUDA device'),
    (f'train.py {SMALL} --cuda_graph', 'cuda_graph = True: needs a CUDA device'),
    # sample
    ('sample.py --out_dir=nowhere', 'no checkpoint at'),
    ('sample.py --checkpoint={tmp}/binary.py', 'binary.py'),
    ('sample.py --checkpoint={ckpt} --start=', 'the prompt is empty'),
    ('sample.py --checkpoint={ckpt} --start=naïve', "['ï']"),
    ('sample.py --checkpoint={ckpt} --start=FILE:nowhere.txt', 'start: cannot read nowhere.txt'),
    ('sample.py --checkpoint={ckpt} --start=FILE:{tmp}/fifo', '(not a file)'),
    ('sample.py --checkpoint={ckpt} --temperature=-1', 'must be at least 0'),
    ('sample.py --checkpoint={ckpt} --top_p=0', 'must be above 0'),
    ('sample.py --temprature=1', "did you mean 'temperature'"),
    ('sample.py --init_from=gpt2', '--checkpoint=gpt2'),  # nanoGPT's key
    # transfer
    ('transfer.py colapse', "unknown command 'colapse'; use one of collapse"),
    ('transfer.py factorise', "did you mean 'factorize'"),
    ('transfer.py collapse', 'checkpoint: must be given'),
    ('transfer.py collapse --checkpoint={ckpt} --out={ckpt}', 'is the checkpoint itself'),
    ('transfer.py collapse --checkpoint={ckpt} --out={tmp}/run/best.pt', 'is the checkpoint of a run'),
    ('transfer.py export-nanogpt --checkpoint={ckpt} --out={tmp}/run/best.pt', 'is the checkpoint of a run'),
    ('transfer.py collapse --checkpoint={ckpt} --out={tmp}', 'is a folder; name a file'),
    ('transfer.py collapse --checkpoint={ckpt} --out={tmp}/run/../run/ckpt.pt', 'is the checkpoint itself'),
    ('transfer.py factorize --checkpoint={ckpt} --linear=low_rank --out={tmp}/big.py/x.pt', 'big.py is no folder'),
    ('transfer.py factorize --checkpoint={ckpt} --linear=low_rank --out={tmp}/x.json', 'name it x.pt'),
    ('transfer.py collapse --checkpoint=nowhere.pt --out={tmp}/x.pt', 'no checkpoint at'),
    ('transfer.py collapse --checkpoint={ckpt} --out={tmp}/big.py', 'is there and no checkpoint, which would be lost'),
    ('transfer.py collapse --checkpoint={ckpt} --out={tmp}/zip', 'is there and no checkpoint, which would be lost'),
    ('transfer.py collapse --checkpoint={ckpt} --out={tmp}/fifo', 'is no plain file, and would be replaced by one'),
    ('transfer.py grow --checkpoint={ckpt} --out=/ --method=clone --n_embd=64', 'out = /: is a folder'),
    ('transfer.py grow --checkpoint={ckpt} --out={tmp}/run/config.pt --method=clone --n_embd=64', 'config.json, which is'),
    ('transfer.py factorize --checkpoint={ckpt} --out={tmp}/run/config.pt --linear=low_rank', 'config.json, which is'),
    ('transfer.py expand --checkpoint={ckpt} --out={tmp}/x.pt --linear_layers=nothing', 'matches no layer'),
    ('transfer.py prune --checkpoint={ckpt} --out={tmp}/x.pt', 'mlp_gate'),
    ('transfer.py consolidate --checkpoint={tmp}/shards-5 --out={tmp}/x.pt', 'no folder'),
    ('transfer.py consolidate --checkpoint={tmp} --out={tmp}/x.pt', 'name the folder'),
    ('transfer.py consolidate --checkpoint={tmp}/shards-5 --out={tmp}/run/best.pt', 'is the checkpoint of a run'),
    ('transfer.py consolidate --checkpoint={tmp}/shards-5 --out={tmp}/x.pt --windows=2', "unknown key 'windows'"),
    ('transfer.py grow --checkpoint={ckpt} --out={tmp}/x.pt --method=cloan --n_embd=64', 'cloan'),
    ('transfer.py grow --checkpoint={ckpt} --out={tmp}/x.pt --method=clone --n_embd=16', '16'),
    ('transfer.py factorize --checkpoint={ckpt} --out={tmp}/x.pt', 'linear: must be given'),
    ('transfer.py factorize --checkpoint={ckpt} --out={tmp}/x.pt --linear=low_rank --params=many', 'must be a number'),
    (
        'transfer.py factorize --checkpoint={ckpt} --out={tmp}/x.pt --linear=low_rank --params=81M',
        'parameters already, position embeddings included; give fewer, or grow it',
    ),
    ('transfer.py spectra --checkpoints=nowhere.pt,{ckpt}', 'no checkpoint at'),
    ('transfer.py match config/d12.py', 'match needs two configs'),
    ('transfer.py export-hf --checkpoint={ckpt}', 'out: must be given'),
    # evaluate
    ('evaluate.py', 'checkpoint: must be given, --checkpoint=PATH'),
    ('evaluate.py --checkpoint={tmp}', 'neither best.pt or ckpt.pt nor a Hugging Face model'),
    ('evaluate.py --checkpoint={ckpt} --tasks=lambda', "did you mean 'lambada'"),
    ('evaluate.py --checkpoint={ckpt} --tasks=,', 'name at least one of'),
    ('evaluate.py --checkpoint={ckpt} --tasks=lambada --dataset=shakespeare', 'dataset = shakespeare: is for the task val'),
    ('evaluate.py --checkpoint={ckpt} --window=64', "window = 64: the model's block_size is 32"),
    ('evaluate.py --checkpoint={ckpt} --window=8 --stride=9', 'tokens would be left out'),
    ('evaluate.py --checkpoint={ckpt} --out={tmp}', 'is a folder; name a file'),
    ('evaluate.py --checkpoint={ckpt} --out={tmp}/run/best.pt', 'is there and no report; choose another --out'),
    ('evaluate.py --checkpoint={ckpt} --dataset=nowhere', "dataset = 'nowhere'"),
    # compare
    ('compare.py', 'arms: give at least two'),
    ('compare.py config/shakespeare_char.py', 'is the config of another script, such as train.py'),
    ('compare.py {tmp}/arms.py', 'lerning_rate'),
    ('compare.py {tmp}/quote.py', 'must be a text of flags, its quotes closed'),
    ('compare.py config/compare/demo.py --name=a/b', 'must be the name of a folder'),
    ('compare.py config/compare/demo.py --cluster=slrum', "did you mean 'slurm'"),
    ('compare.py config/compare/demo.py --seeds=0', 'seeds = 0'),
    ('compare.py --show=nowhere', 'nowhere/comparison.json is missing; name the folder that holds it'),
    ('compare.py --show=README.md', 'README.md/comparison.json is missing; name the folder that holds it'),
    ('compare.py --show=results/growth_warm --baseline=no', "baseline = 'no': no such arm; there is: scratch, "),
    ('compare.py --show=results/growth_warm --seeds=4', 'seeds: has no effect with show, which reads baseline, center, worth'),
    ('compare.py --show=results/growth_warm --center=log --worth=2', "with center = 'log' it is a share"),
    ('compare.py --show=results/growth_warm --center=log', 'worth = 0.02: is a difference here'),
    ('compare.py --show=results/growth_small --worth=1', 'worth: has no effect, this comparison makes no claim'),
    ('compare.py config/compare/demo.py --report', 'demo.py: has no effect with report, which reads results only'),
    ('compare.py config/track/low_rank.py --seed_offset=100', 'share the runs of its baseline'),
    ('compare.py config/compare/mnist_mlp.py --seed_offset=100 --out={tmp}/o --results={tmp}/r', 'names its seeds in its log'),
    ('compare.py config/compare/demo.py --seed_offset=-1', 'seed_offset = -1'),
    ('compare.py --check --worth=1', 'worth: has no effect with check'),
    ('compare.py config/compare/demo.py --baseline=k2000', 'in a config the first arm is the baseline'),
    ('compare.py --report --results={tmp}', 'RESULTS.md stays as it is'),
    # bench
    ('bench.py --steps=0', 'steps = 0'),
    ('bench.py --n_layer=2 -- --rounds=3', 'rounds: belongs to the first arm'),
    ('bench.py --show=nowhere', 'not a file that bench.py --out=FILE wrote'),
    ('bench.py --show=/dev/zero', 'cannot be read (not a file)'),
    ('bench.py mlp --widths=x', 'widths'),
    ('bench.py mlp --show=/dev/zero', 'cannot be read (not a file)'),
    ('bench.py sample --n_layer=2', 'vocab_size: must be given'),
    ('bench.py sample --vocab_size=64 --trace={tmp}', 'cannot write'),
    ('bench.py profile --trace=', 'cannot write'),
    ('bench.py profile --trace={tmp}/t.json --out={tmp}/big.py/x.jsonl', 'cannot write'),
    ('bench.py fit config/gpt2.py -- config/gpt2_xl.py', "'--' stands between the configs of bench.py"),
    ('bench.py structures --d_in=0', 'd_in'),
    ('bench.py structures --n_embd=128', "unknown key 'n_embd'"),  # it has layers of a size, no model
    ('bench.py start --starts=0', 'starts = 0'),
    ('bench.py race --seconds=0', 'seconds: 0 must be above 0'),
    ('bench.py mup nothing', 'nothing'),
    # plot
    ('plot.py nowhere', 'holds no runs'),
    ('plot.py {tmp}/~ --rates', 'comparison'),
    ('plot.py --best=perhaps', 'must be of type bool'),
    ('plot.py {tmp} {tmp} --rates', 'rates: draws the sweep of one comparison, not of 2'),
    ('plot.py {tmp} --best', 'no runs; best and story look at the folders of runs'),
    ('plot.py {tmp} --best --story', 'best, story: are asked for together'),
    ('plot.py --colour=red', "unknown key 'colour'"),
    # data
    ('data/shakespeare_char/prepare.py --vocab_size=3', "unknown key 'vocab_size'"),
    ('data/shakespeare/prepare.py --max_tokens=3', "unknown key 'max_tokens'"),
    ('data/gutenberg/prepare.py --shard_tokens=0', 'shard_tokens = 0'),
    ('data/gutenberg_bpe/prepare.py --vocab_size=10', 'vocab_size = 10'),
    ('data/openwebtext/prepare.py --max_tokens=-1', 'max_tokens = -1'),
    ('data/fineweb_edu/prepare.py --sample=sample-1BT', "did you mean 'sample-10BT'"),
    ('data/wikitext103/prepare.py --train=maybe', 'must be of type bool'),
    ('data/text/prepare.py', 'folder is missing'),
    ('data/text/prepare.py --folder={tmp}/none', 'no such folder'),
    ('data/text/prepare.py --folder={tmp} --name=a/b', "name = 'a/b'"),
    ('data/text/prepare.py --folder={tmp} --name=mine --pattern=*.nothing', 'change --pattern'),
    ('data/text/prepare.py --folder={tmp} --name=mine --val_fraction=1', 'must be at most 0.9'),
    # toys
    ('toys/mnist.py --net=rnn', 'must be one of mlp, cnn'),
    ('toys/mnist.py --seeds=x', "seeds = 'x': must be whole numbers"),
    ('toys/mnist.py --seeds=1,10000000000000', 'must be whole numbers from 0 to 2**40 - 1'),
    ('toys/mnist.py --seeds=', "seeds = '': must be whole numbers"),
    ('toys/letter_counting.py --d_model=1', 'd_model = 1'),
]  # fmt: skip


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    tmp = tmp_path_factory.mktemp('wrong')
    os.mkfifo(tmp / 'fifo')
    (tmp / 'big.py').write_text('#' * 2**21)
    zipfile.ZipFile(tmp / 'zip', 'w').writestr('word/document.xml', 'a letter')
    (tmp / 'binary.py').write_bytes(bytes(range(256)))
    for name, text in dict(
        syntax='n_layer = 2\nn_head = (', raises='n_layer = 1 / 0', loop="include('loop.py')", nul="dataset = 'a\\0b'",
        tuple='mlp_expansion_factor = (4,) * 100_000', digits='n_layer = 10 ** 10_000', values='n_embd = []',
        arms="arms = dict(a='config/shakespeare_char.py', b='--lerning_rate=1')",
        quote='''arms = dict(a="'", b='')''',
    ).items():  # fmt: skip
        (tmp / f'{name}.py').write_text(text + '\n')
    train(load(TrainConfig, [*TINY, f'--out_dir={tmp}/run', '--max_iters=1', '--eval_iters=1']))
    return dict(tmp=tmp, ckpt=tmp / 'run' / 'ckpt.pt')


def test_there_is_a_case_for_every_script():
    scripts = {line.split()[0] for line, _ in CASES}
    there = {str(p.relative_to(ROOT)) for p in (*ROOT.glob('data/*/prepare.py'), *ROOT.glob('toys/*.py'))}
    there |= {f'{n}.py' for n in ('train', 'sample', 'transfer', 'evaluate', 'compare', 'bench', 'plot')}
    assert scripts == there - {'toys/seeds.py'} and len(CASES) >= 80


@pytest.mark.parametrize('command, message', CASES, ids=[line[:60] for line, _ in CASES])
def test_a_wrong_input_gives_one_clear_line_and_exit_code_2(command, message, files, capsys, monkeypatch):
    script, *args = (a.format(**files) for a in command.split(' '))
    before = sorted(files['tmp'].rglob('*'))
    monkeypatch.setattr(sys, 'argv', [script, *args])
    with pytest.raises(SystemExit) as e:
        runpy.run_path(str(ROOT / script), run_name='__main__')
    err = capsys.readouterr().err
    assert e.value.code == 2 and message in err, err
    assert err.startswith('error: ') and 'Traceback' not in err
    assert len(err) < 1500 and err.count('\n') <= 2  # short, and not a line for every key
    assert sorted(files['tmp'].rglob('*')) == before
