"""
Where data comes from.

    download.py   raw files: from a folder, their address or a package index, checked by hash
    tokenfile.py  token files: shards with a header, written whole, verified when opened
    recipes.py    what data/*/prepare.py is made of: documents to read, encoders
    loader.py     batches and evaluation windows of a data set
    losses.py     mean losses on fixed windows of a data set
    tokenizer.py  the tokenizer of a checkpoint
"""
