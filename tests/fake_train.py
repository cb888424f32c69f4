"""A run without a model, in the format of train.py's: what compare.py starts in its tests, in a tenth of a second."""

import dataclasses
import json
import math
import os
import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from configurator import UserError, key, load, root_path, run  # noqa: E402


@dataclasses.dataclass
class FakeConfig:
    out_dir: str = key('out', '')
    learning_rate: float = key(1e-2, '')
    best_rate: float = key(1e-2, '')
    level: float = key(2.0, 'loss at the best rate')
    max_iters: int = key(10, '')
    seed_model: int = key(0, '')
    seed_data: int = key(0, '')
    batch_size: int = key(4, '')
    crash: int = key(0, 'crash at this iteration, once')
    diverge_above: float = key(1.0, 'learning rate that ends in nan')
    long: int = key(0, 'characters to add to every line')
    sleep: float = key(0.0, 'seconds per iteration')
    init_from: str = key('scratch', 'transfer, resume, or the checkpoint of a run like this, which makes it better')
    transfer_from: str = key('', 'the same, for transfer')
    save_checkpoint: bool = key(True, '')
    patience: int = key(0, 'ends so many iterations after half of max_iters')
    shared: float = key(0.01, 'noise of a seed that all arms have in common')
    own: float = key(0.001, 'noise of a seed that is of the arm alone')
    halves: bool = key(False, 'log val_a and val_b')


def costs(cfg):
    tokens = cfg.max_iters * cfg.batch_size
    return dict(params=100, tokens=tokens, flops=600 * tokens)


def train(cfg):
    out = root_path(cfg.out_dir)
    out.mkdir(parents=True, exist_ok=True)
    with open(out / 'starts', 'a') as f:
        f.write(f'{os.getpid()}\n')
    (out / 'config.json').write_text(json.dumps(dataclasses.asdict(cfg)))
    facts = dict(
        device='fake', processes=1, params=100, params_collapsed=100, tokens_per_iter=cfg.batch_size,
        flops_per_token=600, flops_per_update=0, commit='0' * 40,
    )  # fmt: skip
    flops, level = 0, cfg.level
    if source := cfg.transfer_from or cfg.init_from.replace('scratch', '').replace('resume', ''):
        if not Path(source).exists():
            raise UserError(f'no checkpoint {source}')
        flops, level = json.loads(Path(source).read_text())['flops'], level - 0.1
    if cfg.transfer_from:
        facts |= dict(transfer=dict(flops=flops, growing=0.5, source=source))
    (out / 'manifest.json').write_text(json.dumps(facts))
    noise = random.Random(cfg.seed_data).gauss(0, cfg.shared)  # of the seed, the same in every arm
    own = random.Random(f'{cfg.seed_data} {cfg.level} {cfg.learning_rate}').gauss(0, cfg.own)
    end = level + noise + own + 0.1 * math.log(cfg.learning_rate / cfg.best_rate) ** 2
    with open(out / 'metrics.jsonl', 'w') as f:
        for i in range(cfg.max_iters + 1):
            loss = end + 2 * 0.5 ** (10 * i / cfg.max_iters) if cfg.learning_rate <= cfg.diverge_above else float('nan')
            line = dict(kind='eval', iter=i, train_loss=loss, val_loss=loss, seconds=i * 0.1, pad='x' * cfg.long)
            line |= dict(val_a=loss - 0.02, val_b=loss + 0.02) if cfg.halves else {}
            f.write(json.dumps(dict(kind='train', iter=i, loss=loss, ms=100.0)) + '\n' + json.dumps(line) + '\n')
            f.flush()
            time.sleep(cfg.sleep)
            if loss != loss:
                sys.exit(3)
            if cfg.patience and i == cfg.max_iters // 2 + cfg.patience:
                facts |= dict(out_of_patience=True)
                break
            if i == cfg.crash and i and not (out / 'crashed').exists():
                (out / 'crashed').write_text('')
                f.write('{"kind": "eval", "iter": 9, "val_lo')
                f.flush()
                os._exit(1)
    if cfg.save_checkpoint:
        (out / 'ckpt.pt').write_text(json.dumps(dict(flops=flops + i * cfg.batch_size * 600)))
    (out / 'manifest.json').write_text(json.dumps(facts | dict(finished='now', final_iter=i)))


def main():
    train(load(FakeConfig, sys.argv[1:]))


if __name__ == '__main__':
    run(main)
