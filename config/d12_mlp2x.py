# d12_mlp2x as the work "the 3x MLP" documents it: factor 2, width 960.
#
# 136,720,320 parameters, 961.9 MFLOP per token at 1,024 tokens. Loss and step time: not measured yet.
#
#   python train.py config/d12_mlp2x.py

include('d12.py')

n_embd = 960
n_head = 15
mlp_expansion_factor = 2
out_dir = 'out/d12_mlp2x'
