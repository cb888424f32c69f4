# Krony-PT's 95M GPT-2: every MLP matrix one Kronecker product, half of its parameters. Its author starts it by pruning,
# every other input of c_fc and output of c_proj:
#
#   python transfer.py factorize config/kronecker/95m.py --init=prune --checkpoint=gpt2 --dataset=gutenberg --out=out/kronecker-95m/ckpt.pt
#   python train.py config/gpt2.py config/kronecker/95m.py --out_dir=out/kronecker-95m-scratch      its dense twin: config/gpt2.py
#
# 96,128,304 parameters of GPT-2's 124,439,808: 67,816,704 + 24 (3072*384 + 1*2). After 4.9M tokens of
# Gutenberg from Van Loan's start 3.751, pruned 3.787, the dense model 3.564 (results/kronecker_gutenberg: one random seed).

linear = 'kronecker'
linear_layers = 'mlp'
kronecker_shape = (3072, 384)  # of c_fc, 3072 x 768; c_proj has it turned round
