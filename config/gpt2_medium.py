# GPT-2 medium: learned positions, LayerNorm, biases; vocabulary padded from 50257 to 50304.
#
# 354,871,296 parameters (353,822,720 without position embeddings), 2423.0 MFLOP per token at 1,024 tokens. Loss and
# step time: not measured yet.
#
#   python train.py config/gpt2_medium.py

include('gpt2.py')

n_layer = 24
n_head = 16
n_embd = 1024
batch_size = 16
gradient_accumulation_steps = 32
out_dir = 'out/gpt2_medium'
