# The d12_mlp3x that was committed in the end: factor 3 at width 768, nothing made up for.
#
# 109,376,256 parameters, 769.5 MFLOP per token at 1,024 tokens. Loss and step time: not measured yet.
#
#   python train.py config/d12_mlp3x_768.py

include('d12.py')

mlp_expansion_factor = 3
out_dir = 'out/d12_mlp3x_768'
