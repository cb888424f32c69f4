# The MLP of expansive networks on MNIST, each arm at its own best learning rate: 784-128-10 with a chain of 20 linear
# maps that is added to the first layer's output, against the same net without the chain. Its author reported 27 more
# right answers of 10,000, in one run.
#
#   python compare.py config/compare/mnist_mlp.py          mnist_mlp_seed.py: both at the author's rate
#
# The training images are split into 55,000 and 5,000. The 5,000 choose the rates; the errors are those of the test set. The
# published results (results/mnist_mlp, results/mnist_cnn) are older: they train on all 60,000, and the test set chose
# the rates, too. All random seeds of an arm train in one process. All arms and rates take a few minutes on a GPU
# (estimated).

script = 'toys/mnist.py'
claim = 'On MNIST, with its learning rate tuned as well, {arm} makes fewer test errors than {baseline}'
common = '--dataset=mnist --net=mlp --epochs=20 --held_out=5000'
arms = dict(mlp='', chain20='--chain=20')
metric = 'val_error'  # % of the 5,000 images kept back, which choose the rates; figures are test_error
worth = 0.05  # 5 of 10,000
learning_rates = (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3)
shared_rate = 1e-3  # of expansive networks
sweep_seeds = 5
seeds = 40
match = 'tokens'
