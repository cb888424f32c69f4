# Every linear layer of the blocks as a product of two larger matrices, inner width four times its smaller side,
# Gaussian start.
#
#   python compare.py config/track/expanded_gpu.py

include('gpu.py')
arms['expanded'] = '--linear=expanded --linear_layers=mlp+attn'
