# d12 with 4 key-value heads for its 12 query heads.
#
# 114,094,848 parameters, 797.8 MFLOP per token at 1,024 tokens. Loss: not measured yet.
# One H200, 32 x 1,024 tokens, bf16, compiled:
# 65.8 ms per step, 0.92 of d12's (results/d12).
#
#   python train.py config/d12_gqa.py

include('d12.py')

n_kv_head = 4
out_dir = 'out/d12_gqa'
