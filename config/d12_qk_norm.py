# d12 with normalized queries and keys.
#
# 123,532,032 parameters, 854.4 MFLOP per token at 1,024 tokens. Loss and step time: not measured yet.
#
#   python train.py config/d12_qk_norm.py

include('d12.py')

qk_norm = True
out_dir = 'out/d12_qk_norm'
