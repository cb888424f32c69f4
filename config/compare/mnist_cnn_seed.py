# mnist_cnn.py with both arms at the author's learning rate, 1e-3.
#
#   python compare.py config/compare/mnist_cnn_seed.py

include('mnist_cnn.py')
claim = 'On MNIST, at the shared learning rate 1e-3, {arm} makes fewer test errors than {baseline}'
learning_rates = ()
