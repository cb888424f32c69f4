# The document's d12_mlp3x: factor 3, width raised to 832 to make up for it, post norm and QK norm.
#
# 124,880,704 parameters, 872.0 MFLOP per token at 1,024 tokens. Loss and step time: not measured yet.
#
#   python train.py config/d12_mlp3x.py

include('d12.py')

n_embd = 832
n_head = 13
mlp_expansion_factor = 3
post_norm = True
qk_norm = True
out_dir = 'out/d12_mlp3x'
