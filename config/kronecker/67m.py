# Krony-PT's 67M GPT-2: every MLP matrix one Kronecker product of two factors so small that hardly any MLP is left.
#
#   python transfer.py factorize config/kronecker/67m.py --checkpoint=gpt2 --dataset=gutenberg --out=out/kronecker-67m/ckpt.pt
#   python train.py config/gpt2.py config/kronecker/67m.py --out_dir=out/kronecker-67m-scratch      its dense twin: config/gpt2.py
#
# 67,893,504 parameters of GPT-2's 124,439,808: 67,816,704 + 24 (32*64 + 96*12). --kronecker_shape=64,256
# --kronecker_terms=10 is its richer variant, 71,783,424. Loss: not measured yet.

linear = 'kronecker'
linear_layers = 'mlp'
kronecker_shape = (32, 64)  # of c_fc, 3072 x 768; c_proj has it turned round
