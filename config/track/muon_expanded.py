# Products of two larger matrices (the inner width is four times the smaller side) in all linear layers of the blocks;
# each factor is moved by Muon as a matrix by itself, at four times the rate of the embeddings.
#
#   python compare.py config/track/muon_expanded.py

include('small.py')
arms['muon_expanded'] = '--optimizer=muon --hidden_lr=4 --linear=expanded --linear_layers=mlp+attn'
learning_rates = dict(dense=learning_rates, muon_expanded=(1e-3, 2e-3, 4e-3))
