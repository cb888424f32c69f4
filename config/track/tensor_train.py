# Tensor trains of two cores, a third of the parameters, in all linear layers of the blocks.
#
#   python compare.py config/track/tensor_train.py

include('small.py')
arms['tensor_train'] = '--linear=tensor_train --linear_layers=mlp+attn'
