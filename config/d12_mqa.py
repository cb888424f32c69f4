# d12 with one key-value head: multi-query attention.
#
# 110,555,904 parameters, 776.6 MFLOP per token at 1,024 tokens. Loss and step time: not measured yet.
#
#   python train.py config/d12_mqa.py

include('d12.py')

n_kv_head = 1
out_dir = 'out/d12_mqa'
