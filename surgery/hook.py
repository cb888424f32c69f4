"""
Hooks: what can change the model of a run while it trains. train.hooks lists the hooks of a config; rotate.py, guide.py
and distill.py have one each.
"""


class Hook:
    """A hook overrides the methods that it needs; the others do nothing. it: number of optimizer steps done."""

    flops_per_token = 0  # of its own work, per training token
    soft = None  # x (B, T) -> (logits (B, T, V) that the loss follows too, their weight), see GPT.forward

    def before_update(self, model, optimizer, it: int):
        """The gradients of step `it` are there, its update is not made yet."""

    def after_update(self, model, optimizer, it: int) -> bool:
        """Between two steps. A hook that changes parameters rebuilds the optimizer (Optimizer.release and rebuild).
        Returns whether the forward pass has to be compiled anew: whether modules or parameters that the network
        computes with have changed."""
        return False

    def describe(self, model, optimizer) -> list[str]:
        """Lines for the head of a run."""
        return []
