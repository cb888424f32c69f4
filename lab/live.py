"""
What a terminal shows while a comparison runs.
"""

import json
import os
import shutil
import sys
import time
from pathlib import Path

from lab import verdicts


class Live:
    """The table that shows where a comparison stands, redrawn in place on a terminal."""

    def __init__(self, state):
        self.state, self.lines, self.last, self.t0 = state, 0, 0.0, time.time()

    def __call__(self, running: dict):
        if not sys.stdout.isatty() or time.time() - self.last < 1:
            return
        self.last = time.time()
        text = self.text(running)
        up = f'\x1b[{self.lines}F\x1b[J' if self.lines else ''
        width = shutil.get_terminal_size().columns
        lines = [line[: width - 1] for line in text.splitlines()]
        print(up + '\n'.join(lines), flush=True)
        self.lines = len(lines)

    def text(self, running: dict) -> str:
        s, rows = self.state, []
        settings = vars(s.cfg) | dict(halves=verdicts.halves(vars(s.cfg), s.records))
        left = s.left()
        for i, p in enumerate(s.plans):
            over = [r for r in s.records.values() if (r['arm'], r['size']) == (p.arm, p.size)]
            chosen = verdicts.rate(settings, s.records, p.arm, p.size) if p.is_arm else None
            decided = verdicts.figures(settings, s.records, p.arm, p.size)[1] if chosen else {}
            figures = list(decided.get(chosen.lr, {}).values()) if chosen else []
            rows.append(
                f'{p.name:24} {len(over):3} over, {sum(r.plan == i for r in left):3} left so far'
                + (f', best rate so far {chosen.lr:g}' if chosen and len(chosen.means) > 1 else '')
                + (f', {s.cfg.metric} {sum(figures) / len(figures):.4f} (n={len(figures)})' if figures else '')
            )
        for name in running:
            rows.append(f'  {name:30} {last_line(s.out / name)}')
        minutes, seconds = divmod(int(time.time() - self.t0), 60)
        rules = [line for text in s.rules.values() for line in text.splitlines()]
        return '\n'.join(
            [*rules, *rows, f'{minutes}:{seconds:02} running' + (f'; {s.failed_write}' if s.failed_write else '')]
        )


def last_line(folder: Path) -> str:
    """What a running run logged last."""
    try:
        with open(folder / 'metrics.jsonl', 'rb') as f:
            f.seek(0, os.SEEK_END)
            f.seek(max(0, f.tell() - 2000))
            for text in reversed(f.read().decode(errors='replace').splitlines()):
                try:
                    m = json.loads(text)
                    return f'iter {m["iter"]}, loss {m.get("loss", m.get("val_loss", 0)):.4f}'
                except (ValueError, KeyError, TypeError):
                    continue
    except OSError:
        pass
    try:  # a script that trains several seeds at once
        return (folder / 'output.txt').read_text(errors='replace').splitlines()[-1]
    except (OSError, IndexError):
        return 'starting'
