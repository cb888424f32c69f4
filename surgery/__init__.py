"""
Make a checkpoint from a checkpoint, and change the model of a run while it trains.

    reader.py          any checkpoint by its path: ours, nanoGPT's, a Hugging Face GPT-2
    claims.py          what a checkpoint says of itself, checked before anything is built from it
    nanogpt.py         read nanoGPT's names and optimizer state; export_nanogpt.py writes them
    operation.py       what all operations share: open, say what was done to the function, write; single layers
    collapse.py        multiply factors out; the other way round; cut out closed gates
    factorize.py       plain matrices into structured ones, by hand or for a budget
    distill.py         new blocks learn to do as the old ones; the teacher of distill_from
    grow/              a larger model out of a small one
    hook.py            what may happen to the model of a run while it trains
    rotate.py          expand one layer at a time while training
    guide.py           dense guides that fade out while training
    shares.py          a checkpoint to which every process writes its share, for its own run; its plain file
    start.py           what a run starts from
    spectra.py         singular values across checkpoints and sizes
    huggingface.py     read a Hugging Face GPT-2; export_hf.py writes one
    language_model.py  any causal language model with its tokenizer behind one interface, for evaluate.py
"""
