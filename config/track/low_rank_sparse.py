# Low rank plus a sparse matrix on a fixed random support, a third of the parameters, in all linear layers of the blocks.
#
#   python compare.py config/track/low_rank_sparse.py

include('small.py')
arms['low_rank_sparse'] = '--linear=low_rank_sparse --linear_layers=mlp+attn'
