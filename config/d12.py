# The baseline of the work "the 3x MLP": GPT-2 small without position table, biases or norm weights. It has RoPE,
# RMSNorm without weights, and an attention branch scaled by 1/sqrt(2*n_layer).
#
# 123,532,032 parameters, 854.4 MFLOP per token at 1,024 tokens. Val loss on Gutenberg after 27.9M
# tokens 4.165 (two seeds, std 0.010; results/d12_finalists). One H200, 32 x 1,024 tokens, bf16, compiled:
# 71.8 ms per step (results/d12).
#
#   python train.py config/d12.py

include('gpt2.py')

vocab_size = 50257  # unpadded, as there
bias = False
norm = 'rmsnorm'
norm_affine = False
position = 'rope'
attn_scale = 0  # 1/sqrt(2*n_layer)
out_dir = 'out/d12'
