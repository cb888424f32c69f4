# A Kronecker product with a third of the parameters, in all linear layers of the blocks.
#
#   python compare.py config/track/kronecker.py

include('small.py')
arms['kronecker'] = '--linear=kronecker --linear_layers=mlp+attn'
