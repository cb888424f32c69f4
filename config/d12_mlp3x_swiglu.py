# d12_mlp3x_swiglu as the work "the 3x MLP" documents it: width 832, factor 3, SwiGLU not matched.
#
# 149,800,768 parameters, 1021.5 MFLOP per token at 1,024 tokens. Loss: not measured yet.
# One H200, 32 x 1,024 tokens, bf16, compiled:
# 88.1 ms per step, 1.23 of d12's (results/d12).
#
#   python train.py config/d12_mlp3x_swiglu.py

include('d12.py')

n_embd = 832
n_head = 13
mlp_expansion_factor = 3
mlp = 'swiglu'
swiglu_match = False
out_dir = 'out/d12_mlp3x_swiglu'
