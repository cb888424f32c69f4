# d12 with one key-value head: multi-query attention.
#
# 110,555,904 parameters, 776.6 MFLOP per token at 1,024 tokens. Loss: not measured yet.
# One H200, 32 x 1,024 tokens, bf16, compiled:
# 62.4 ms per step, 0.87 of d12's (results/d12).
#
#   python train.py config/d12_mqa.py

include('d12.py')

n_kv_head = 1
out_dir = 'out/d12_mqa'
