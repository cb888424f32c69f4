# The standard mixture that btt_moe is compared with: eight MLPs; each token goes to two of them.
#
#   python train.py config/structured/ffn_moe.py
#   python train.py config/structured/ffn_moe.py config/structured/gutenberg.py --out_dir=out/structured/ffn-moe-gutenberg
#
# All else is as in shakespeare_char.py. Shape and parameters are printed at the start.
# Val loss: 2.4340 after 250 iterations of the small preset, on a CPU, on Gutenberg 5.4987 after 200 (dense: 5.4209).
# One random seed and one rate for all, so do not rank by it: results/structured/training.txt.

include('../shakespeare_char.py')

mlp = 'moe'
out_dir = out_dir.replace('shakespeare-char', 'structured/ffn_moe')
wandb_run_name = 'ffn_moe'
