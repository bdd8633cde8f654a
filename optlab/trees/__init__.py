"""Tree -> tree: paths, labels, matrix views of parameters, stacks of equal shapes."""

from optlab.trees._layers import Layer as Layer
from optlab.trees._layers import LayerStats as LayerStats
from optlab.trees._layers import layer_groups as layer_groups
from optlab.trees._layers import layer_stacks as layer_stacks
from optlab.trees._layers import layer_statistics as layer_statistics
from optlab.trees._matrices import MatrixView as MatrixView
from optlab.trees._matrices import from_matrices as from_matrices
from optlab.trees._matrices import to_matrices as to_matrices
from optlab.trees._paths import path_string as path_string
from optlab.trees._routing import labels as labels
from optlab.trees._routing import routing_table as routing_table
from optlab.trees._stacks import leaf_views as leaf_views
from optlab.trees._stacks import matrix_stacks as matrix_stacks
from optlab.trees._stacks import stack_by_shape as stack_by_shape
from optlab.trees._tensors import by_shape as by_shape
from optlab.trees._tensors import gathered as gathered
from optlab.trees._tensors import stacks_with_places as stacks_with_places
from optlab.trees._tensors import tensor_stacks as tensor_stacks
from optlab.trees._views import matrix_views as matrix_views
from optlab.trees._views import views_by_path as views_by_path
