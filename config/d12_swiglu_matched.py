# d12 with SwiGLU at two thirds of the hidden units: the parameters of d12.
#
# 123,532,032 parameters, 854.4 MFLOP per token at 1,024 tokens. Loss and step time: not measured yet.
#
#   python train.py config/d12_swiglu_matched.py

include('d12.py')

mlp = 'swiglu'
out_dir = 'out/d12_swiglu_matched'
