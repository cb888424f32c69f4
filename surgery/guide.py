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

    def guided(self, model, optimizer) -> list:
        """The layers that have a guide."""
        return [m for m in [*model.modules(), *optimizer.factors.values()] if getattr(m, 'guide', None) is not None]

    def before_update(self, model, optimizer, it):
        if it < self.iters:  # before the update, since the matrices that it forms are those of the next step
            share = 0.5 * (1 + math.cos(math.pi * min(1, (it + 1) / self.iters)))
            for m in self.guided(model, optimizer):
                m.share.fill_(share)

    def after_update(self, model, optimizer, it):
        """Once the guides have faded out, drop them. The other parameters keep their moments."""
        if it != self.iters:
            return False
        moments = optimizer.release()
        for m in self.guided(model, optimizer):
            m.let_go()
        self.cfg.guide_iters = 0  # of the run, as its checkpoints say from now on
        model.config = dataclasses.replace(model.config, guide_iters=0)
        optimizer.rebuild(moments)
        return True
