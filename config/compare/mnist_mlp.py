# The MLP of expansive networks on MNIST, each arm at its own best learning rate: 784-128-10 with a chain of 20 linear maps on a
# skip around the first layer's output, against the same net without. Its author reported +27 of 10,000, one run.
#
#   python compare.py config/compare/mnist_mlp.py          mnist_mlp_seed.py: both at the author's rate
#
# All seeds of an arm train in one process; estimated at a few minutes on a GPU for all arms and rates.

script = 'toys/mnist.py'
claim = 'On MNIST, with its learning rate tuned as well, {arm} makes fewer test errors than {baseline}'
common = '--dataset=mnist --net=mlp --epochs=20'
arms = dict(mlp='', chain20='--chain=20')
metric = 'val_error'  # %, after the last epoch
worth = 0.05  # 5 of 10,000
learning_rates = (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3)
sweep_seeds = 5
seeds = 10
match = 'tokens'
