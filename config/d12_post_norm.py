# d12 with the output of attention and MLP normalized as well (pre and post norm).
#
# 123,532,032 parameters, 854.4 MFLOP per token at 1,024 tokens. Loss and step time: not measured yet.
#
#   python train.py config/d12_post_norm.py

include('d12.py')

post_norm = True
out_dir = 'out/d12_post_norm'
