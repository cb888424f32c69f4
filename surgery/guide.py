"""
Dense guides (guide_iters): a structured layer starts as a dense matrix, which fades out. Self-guided training, Wei et
al. 2024, arXiv 2406.16450, section 3.2. Structured.follow in linear/structured.py is the layer's part of it.
"""

import dataclasses
import math

from surgery.hook import Hook


class Guide(Hook):
    def __init__(self, cfg):
        self.cfg, self.iters = cfg, cfg.guide_iters
        self.before = None  # iterations that they had faded for before this run's first; known at its first update

    def guided(self, model, optimizer) -> list:
        """The layers that have a guide."""
        return [m for m in [*model.modules(), *optimizer.factors.values()] if getattr(m, 'guide', None) is not None]

    @property
    def end(self) -> int:
        """The iteration after which they are dropped."""
        return self.iters - (self.before or 0)

    def share(self, n: int) -> float:
        """Of the guides after n iterations."""
        return 0.5 * (1 + math.cos(math.pi * min(1, n / self.iters)))

    def faded(self, model, optimizer, it) -> int:
        """For how many iterations the guides have faded at iteration it. A run that begins with a checkpoint of a run whose
        guides were fading (init_from = FILE) goes on from there: from it = 0 they would jump back, and the loss, too."""
        s = self.guided(model, optimizer)[0].share
        if s.item() == s.new_tensor(self.share(it)).item():
            return it
        return min(self.iters - 1, round(self.iters * math.acos(max(-1, min(1, 2 * s.item() - 1))) / math.pi))

    def before_update(self, model, optimizer, it):
        if self.iters and self.before is None and self.guided(model, optimizer):
            self.before = self.faded(model, optimizer, it) - it
        if it < self.end:  # before the update, since the matrices that it forms are those of the next step
            for m in self.guided(model, optimizer):
                m.share.fill_(self.share(it + 1 + self.before))

    def after_update(self, model, optimizer, it):
        """Once the guides have faded out, drop them. The other parameters keep their moments."""
        if it != self.end:
            return False
        moments = optimizer.release()
        for m in self.guided(model, optimizer):
            m.let_go()
        self.cfg.guide_iters = 0  # of the run, as its checkpoints say from now on
        model.config = dataclasses.replace(model.config, guide_iters=0)
        optimizer.rebuild(moments)
        return True

    def describe(self, model, optimizer):
        if self.cfg.init_from in ('scratch', 'resume', 'transfer') or not self.guided(model, optimizer):
            return []
        behind = self.faded(model, optimizer, 0)
        return [f'the guides go on fading where the checkpoint left them: {behind} of {self.iters} iterations']
