"""
A large GPT out of a small one.

    growth.py   the command, the start of a run with init_from = 'transfer', and the list of methods
    checks.py   what can grow into what
    weights.py  a whole model: depth methods, every tensor, Adam's moments
    widen.py    width methods: how one matrix becomes a larger one
    ligo.py     the copying, learned
"""
