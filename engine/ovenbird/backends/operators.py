"""What the graphs of Stable Diffusion are made of, as every exporter known here writes them."""

from __future__ import annotations


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


IR = _names("""
    Abs Add AvgPool BatchNormInference BatchToSpace Broadcast Ceiling Clamp Concat Const Constant Convert ConvertLike
    Convolution ConvolutionBackpropData Cos CumSum DepthToSpace Divide Einsum Elu Equal Erf Exp ExtractImagePatches
    FakeConvert FakeQuantize Floor FloorMod GELU Gather GatherElements GatherND Gelu Greater GreaterEqual
    GroupConvolution GroupConvolutionBackpropData GroupNormalization HSigmoid HSwish HardSigmoid Identity Interpolate
    LRN Less LessEqual Log LogSoftmax LogicalAnd LogicalNot LogicalOr LogicalXor MVN MatMul MaxPool Maximum Minimum
    Mish Mod Multiply Negative NonZero NormalizeL2 NotEqual OneHot PReLU Pad Parameter Power RMS RandomUniform Range
    ReLU ReduceL1 ReduceL2 ReduceLogicalAnd ReduceLogicalOr ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
    Reshape Result Roll Round ScaledDotProductAttention ScatterElementsUpdate ScatterNDUpdate ScatterUpdate Select
    Selu ShapeOf Sigmoid Sign Sin Slice SoftMax SoftPlus Softmax SpaceToDepth Split Sqrt SquaredDifference Squeeze
    StridedSlice Subtract Swish Tan Tanh Tile TopK Transpose Unsqueeze VariadicSplit
""")
"""Of OpenVINO's opsets; without those that branch, loop, keep a state, or come from a library of their own."""

ONNX = _names("""
    Abs Add And ArgMax ArgMin Attention AveragePool BatchNormalization Cast CastLike Ceil Clip Concat Constant
    ConstantOfShape Conv ConvInteger ConvTranspose Cos CumSum DepthToSpace DequantizeLinear Div Dropout
    DynamicQuantizeLinear Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor Gather GatherElements GatherND Gelu
    Gemm GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual GroupNormalization HardSigmoid HardSwish Identity
    InstanceNormalization IsNaN LRN LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax MatMul MatMulInteger
    Max MaxPool Mean Min Mish Mod Mul Neg NonZero Not OneHot Or PRelu Pad Pow QLinearConv QLinearMatMul QuantizeLinear
    RMSNormalization RandomNormal RandomNormalLike RandomUniform RandomUniformLike Range Reciprocal ReduceL1 ReduceL2
    ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize Round
    ScatterElements ScatterND Selu Shape Sigmoid Sign Sin Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt
    Squeeze Sub Sum Swish Tan Tanh Tile TopK Transpose Trilu Unsqueeze Upsample Where Xor
""")
"""Of ONNX's own domain; without those that branch, loop, or work on texts and lists."""

MICROSOFT = _names("""
    Attention BiasAdd BiasGelu BiasSoftmax BiasSplitGelu DequantizeLinear DynamicQuantizeMatMul
    EmbedLayerNormalization FastGelu FusedConv FusedGemm FusedMatMul Gelu GroupNorm GroupQueryAttention MatMulBnb4
    MatMulFpQ4 MatMulIntegerToFloat MatMulNBits MultiHeadAttention NhwcConv NhwcFusedConv NhwcMaxPool QAttention QGemm
    QLinearAdd QLinearAveragePool QLinearConcat QLinearLeakyRelu QLinearMul QLinearSigmoid QLinearSoftmax
    QuantizeLinear QuickGelu SimplifiedLayerNormalization SkipGroupNorm SkipLayerNormalization
    SkipSimplifiedLayerNormalization
""")
"""What ONNX Runtime's own tools put in place of several of those."""

DOMAINS = {"": ONNX, "ai.onnx": ONNX, "com.microsoft": MICROSOFT}
