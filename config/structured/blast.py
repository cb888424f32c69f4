# BLAST: blocks of W that share factors along rows and columns, each with a diagonal coupling of its own.
#
#   python train.py config/structured/blast.py
#   python train.py config/structured/blast.py config/structured/gutenberg.py --out_dir=out/structured/blast-gutenberg
#
# All else is as in shakespeare_char.py. Shape and parameters are printed at the start.
# Val loss: not measured yet.

include('../shakespeare_char.py')

linear = 'blast'
out_dir = out_dir.replace('shakespeare-char', 'structured/blast')
wandb_run_name = 'blast'
