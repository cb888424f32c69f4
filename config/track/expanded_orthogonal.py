# Every linear layer of the blocks as a product of two larger matrices that starts as the matrix of dense exactly, one
# factor orthogonal.
#
#   python compare.py config/track/expanded_orthogonal.py

include('small.py')
arms['expanded_orthogonal'] = '--linear=expanded --linear_layers=mlp+attn --expansion_init=orthogonal'
