"""
Milliseconds per step of the arms of a comparison, by bench.py: the only seconds that its tables show.
"""

import json
import sys
import zlib
from pathlib import Path

from configurator import ROOT, UserError
from files import read_lines, write_lines
from lab import launch
from lab.plan import LENGTH, Plan, settings


def steps(cfg, plans: list[Plan], folder: Path, out: Path, engine) -> dict:
    """{cell: ms per step}, every arm and step alone on the machine and in turns, what has the same shapes once. Kept in
    <results>/<name>/bench.jsonl. Left out is what takes its shapes or a teacher from a checkpoint."""
    # by an arm's flags, as one text: its cells; the flags; what they say, which changes where a config file does
    cells, argvs, resolved = {}, {}, {}
    for p in plans:
        if p.known:
            fixed = [a for a in p.argv if not a.startswith(('--init_from=transfer', '--transfer_')) or not p.refers_to]
            # a step takes as long at every horizon
            length = ('--max_iters=', '--lr_decay_iters=', '--wsd_decay_iters=') if cfg.horizons else ()
            constant = ['--decay_lr=false'] if cfg.horizons and getattr(p.cfg, 'schedule', '') == 'wsd' else []
            argv = [*(a for a in fixed if not a.startswith(length)), *constant]
            argvs[arm := ' '.join(argv)] = argv
            cells.setdefault(arm, []).append(p.name)
            keys = {k: v for k, v in settings(p.cfg).items() if not k.startswith(('init_from', 'transfer_', *LENGTH))}
            resolved.setdefault(arm, keys)
    rows = read_lines(folder / 'bench.jsonl')
    old = [(r.get('arm'), r.get('settings', resolved.get(r.get('arm')))) for r in rows]  # an older row does not say
    if old != list(resolved.items()):
        fresh = out / f'bench-{zlib.crc32(json.dumps(resolved).encode())}.jsonl'
        command = [sys.executable, str(ROOT / 'bench.py')]
        for i, arm in enumerate(cells):
            command += [*(['--'] if i else []), *argvs[arm], *([] if i else [f'--out={fresh}'])]
        print(f'timing the training steps of {", ".join(mine[0] for mine in cells.values())}, alone', flush=True)
        failed = launch.run_all(
            lambda: [] if fresh.exists() else [('bench', out / 'bench', command)],
            lambda name, code: '' if fresh.exists() else f'exit code {code}',
            engine, 1, tries=1,
        )  # fmt: skip
        if failed:
            raise UserError(f'bench.py failed: {failed["bench"]} ({out / "bench" / "output.txt"}); or --bench=false')
        rows = [r | dict(arm=a, cells=cells[a], settings=resolved[a]) for r, a in zip(read_lines(fresh), cells)]
        write_lines(folder / 'bench.jsonl', rows)
    return {cell: r['ms'] for r in rows for cell in r.get('cells', ())}
