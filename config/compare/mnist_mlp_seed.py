# mnist_mlp.py with both arms at the author's learning rate, 1e-3.
#
#   python compare.py config/compare/mnist_mlp_seed.py

include('mnist_mlp.py')
claim = 'On MNIST, at the shared learning rate 1e-3, {arm} makes fewer test errors than {baseline}'
learning_rates = ()
