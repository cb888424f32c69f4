# The experiment of expansive networks: every MLP matrix of nanoGPT on Tiny Shakespeare trained as the product of two
# factors with k = 2000 between them, all else as in its dense twin shakespeare_char.py.
#
#   python train.py config/expansive_shakespeare.py
#   python transfer.py collapse --checkpoint=out/expansive-shakespeare/best.pt --out=out/expansive-shakespeare-dense/ckpt.pt    (-small: without a GPU)
#
# On a GPU: 49.6M parameters in training, 10.65M after collapse, 1.07 times the twin's step time on an H100. Val loss
# 2.035 at iteration 250 (five seeds, std 0.013), best 1.463 at iteration 3500 of one full run (results/).
# Without a GPU the twin's small preset, with k = 666: the same ratio to the width.

include('shakespeare_char.py')

linear = 'expanded'
linear_layers = 'mlp'
expansion = 2000 * n_embd // 384
expansion_depth = 2
expansion_init = 'gaussian'
out_dir = out_dir.replace('shakespeare-char', 'expansive-shakespeare')
wandb_run_name = 'expansive'
