# Krony-PT's 81M GPT-2: every MLP matrix one Kronecker product, a quarter of its parameters.
#
#   python transfer.py factorize config/kronecker/81m.py --checkpoint=gpt2 --dataset=gutenberg --out=out/kronecker-81m/ckpt.pt
#   python train.py config/gpt2.py config/kronecker/81m.py --out_dir=out/kronecker-81m-scratch      its dense twin: config/gpt2.py
#
# 81,972,576 parameters of GPT-2's 124,439,808: 67,816,704 + 24 (1536*384 + 2*2). (768, 768) has as many (2*2 = 1*4).
# After 4.9M tokens of Gutenberg from a pruned start 3.951, Van Loan's 4.274 (4.0 to 5.1, by random seed), the dense model 3.639
# (results/kronecker_gutenberg_81m: eight random seeds).

linear = 'kronecker'
linear_layers = 'mlp'
kronecker_shape = (1536, 384)  # of c_fc, 3072 x 768; c_proj has it turned round
