# Blocks on the diagonal, a third of the parameters, in all linear layers of the blocks.
#
#   python compare.py config/track/block_diagonal.py

include('small.py')
arms['block_diagonal'] = '--linear=block_diagonal --linear_layers=mlp+attn'
