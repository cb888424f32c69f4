# The d12_mlp3x in the code of the work "the 3x MLP": factor 3 at width 768, so it has fewer parameters than d12.
#
# 109,376,256 parameters, 769.5 MFLOP per token at 1,024 tokens. Val loss after 8.2M tokens of Gutenberg, at one rate
# and one random seed, 4.925 (d12: 4.969; results/d12/screen.txt). One H200, 32 x 1,024 tokens, bf16, compiled: 67.2 ms
# per step, 0.93 of d12's (results/d12).
#
#   python train.py config/d12_mlp3x_768.py

include('d12.py')

mlp_expansion_factor = 3
out_dir = 'out/d12_mlp3x_768'
