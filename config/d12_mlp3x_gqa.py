# The document's d12_mlp3x_gqa: width 768, factor 3, 4 key-value heads.
#
# 99,939,072 parameters, 712.9 MFLOP per token at 1,024 tokens. Loss and step time: not measured yet.
#
#   python train.py config/d12_mlp3x_gqa.py

include('d12.py')

mlp_expansion_factor = 3
n_kv_head = 4
out_dir = 'out/d12_mlp3x_gqa'
