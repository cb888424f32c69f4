# BTT-MoE: a router and eight Block Tensor-Trains in the place of each matrix; each token goes to two of them.
#
#   python train.py config/structured/btt_moe.py
#   python train.py config/structured/btt_moe.py config/structured/gutenberg.py --out_dir=out/structured/btt-moe-gutenberg
#
# All else is as in shakespeare_char.py. Shape and parameters are printed at the start.
# Val loss: 2.4335 after 250 iterations of the small preset, on a CPU, on Gutenberg 8.5413 after 60 of the small
# preset. One random seed and one rate for all, so do not rank by it: results/structured/training.txt.

include('../shakespeare_char.py')

linear = 'btt_moe'
out_dir = out_dir.replace('shakespeare-char', 'structured/btt_moe')
wandb_run_name = 'btt_moe'
