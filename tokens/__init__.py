"""
Where data comes from.

    download.py   raw files: from a folder, their address or a package index, checked by hash
    tokenfile.py  token files: shards written by data/*/prepare.py, read by the loader
    loader.py     batches and evaluation windows of a data set
    losses.py     mean losses on fixed windows of a data set
    tokenizer.py  the tokenizer of a checkpoint
"""
