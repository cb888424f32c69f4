# d12 with SwiGLU at the same expansion factor as its GELU: half more MLP parameters, not matched, as documented.
#
# 151,843,584 parameters, 1024.3 MFLOP per token at 1,024 tokens. Loss: not measured yet.
# One H200, 32 x 1,024 tokens, bf16, compiled:
# 83.9 ms per step, 1.17 of d12's (results/d12).
#
#   python train.py config/d12_swiglu.py

include('d12.py')

mlp = 'swiglu'
swiglu_match = False
out_dir = 'out/d12_swiglu'
