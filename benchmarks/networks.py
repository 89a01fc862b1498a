"""The networks that benchmarks/surgery.py prunes: torchvision's classifiers, one small network a family of timm's."""

import torch

from compressor.vision import door as vision

# Convolutional networks and hybrids of timm 1.0: of every module and name prefix the smallest variant.
TIMM = """
    bat_resnext26ts botnet26t_256 caformer_s18 coatnet_pico_rw_224 coatnext_nano_rw_224 convformer_s18
    convmixer_768_32 convnext_zepto_rms convnextv2_atto cpubone_nano cs3darknet_focus_s cspdarknet53 cspnext_tiny
    cspresnet50 cspresnext50 darknet17 darknetaa53 densenet121 densenetblur121d dla46x_c dpn48b eca_botnext26ts_256
    eca_nfnet_l0 eca_resnext26ts eca_vovnet39b ecaresnet26t ecaresnetlight ecaresnext26t_32x4d edgenext_xx_small
    efficientformer_l1 efficientformerv2_s0 efficientnet_b0 efficientnet_lite0 efficientnetv2_rw_t efficientvim_m1
    efficientvit_b0 efficientvit_m0 ese_vovnet19b_slim_dw fasternet_t0 fastvit_t8 fbnetc_100 fbnetv3_b
    focalnet_tiny_srf gc_efficientnetv2_rw_t gcresnet33ts gcresnext26ts gernet_s ghostnet_050 ghostnetv3_050
    halo2botnet50ts_256 halonet_h1 haloregnetz_b hardcorenas_b hgnet_tiny hgnetv2_b0 hrnet_w18_small iformer_t
    inception_next_atto inception_resnet_v2 inception_v3 inception_v4 lambda_resnet26t lamhalobotnet50ts_256
    lcnet_035 lcnetv2_small legacy_seresnet18 legacy_xception levit_128s lowformer_b0 mambaout_femto
    maxvit_pico_rw_256 maxxvit_rmlp_nano_rw_256 maxxvitv2_nano_rw_256 mixnet_s mnasnet_small mobilenet_edgetpu_100
    mobilenetv2_035 mobilenetv3_small_050 mobileone_s1 mobilevit_xxs mobilevitv2_050 nextvit_small nf_regnet_b0
    nf_resnet50 nfnet_l0 poolformer_s12 poolformerv2_s12 rdnet_tiny regnetv_040 regnetx_002 regnety_002 regnetz_005
    regnetz_b16 repghostnet_050 repvgg_a0 repvit_m1 res2next50 resnest14d resnet10t resnet32ts resnetaa34d
    resnetblur18 resnetrs50 resnetv2_18 resnext26ts resnext50_32x4d rexnet_100 rexnetr_100 sebotnet33ts_256
    sedarknet21 sehalonet33ts selecsls42 semnasnet_050 seresnet18 seresnet33ts seresnetaa50d seresnext26t_32x4d
    seresnext26ts shvit_s1 skresnet18 skresnext50_32x4d spnasnet_100 starnet_s050 swiftformer_xs test_byobnet
    test_coatnet test_convnext test_efficientnet test_mambaout test_nfnet test_resnet tf_mixnet_s
    tf_mobilenetv3_small_075 tiny_vit_5m_224 tinynet_e tresnet_m vgg11_bn vovnet39a xception41p
""".split()  # noqa: SIM905 - a list of words


def build(name: str) -> tuple[torch.nn.Module, torch.Tensor]:
    """A network with random weights and an example of its own input size."""
    library, _, network = name.partition(":")
    torch.manual_seed(0)
    if library == "timm":
        import timm

        model = timm.create_model(network, pretrained=False)
        return model, torch.randn(1, *model.default_cfg["input_size"])
    if library == "segmentation_models_pytorch":
        import segmentation_models_pytorch

        model = getattr(segmentation_models_pytorch, network)(encoder_weights=None)
        return model, torch.randn(1, 3, 96, 96)
    if network in ("googlenet", "inception_v3"):  # their own initialisation takes a minute and is not the point
        torch.nn.init.trunc_normal_ = lambda tensor, *_, **__: tensor.data.normal_(0, 0.05)
    return vision.build(network), torch.randn(1, *vision.default_preset(network).input_shape)


def torchvision_names() -> list[str]:
    """Every classifier below 150 million parameters (the larger ones are the same code with other numbers)."""
    too_large = ("regnet_y_128gf", "regnet_y_32gf", "vit_h_14", "vit_l_16", "vit_l_32", "convnext_large")
    return [name for name in vision.classifiers() if name not in too_large]


# Sixty of three libraries on which the engines are timed: classifiers old and new, and networks for segmentation.
SPEED = [
    f"{library}:{name}"
    for library, names in {
        "torchvision": """alexnet vgg11_bn squeezenet1_1 resnet18 resnet34 resnet50 resnet101 resnext50_32x4d
            wide_resnet50_2 densenet121 googlenet mobilenet_v2 mobilenet_v3_small mobilenet_v3_large mnasnet1_0
            shufflenet_v2_x1_0 regnet_x_400mf regnet_y_400mf regnet_y_1_6gf efficientnet_b0 efficientnet_b1
            efficientnet_v2_s convnext_tiny convnext_small""",
        "timm": """hrnet_w18_small convnext_atto mobilenetv3_small_050 ghostnet_050 efficientnet_lite0 fbnetc_100
            mnasnet_small spnasnet_100 mobilenetv2_035 lcnet_035 tinynet_e hardcorenas_b semnasnet_050 resnet10t
            resnetblur18 res2next50 resnext26ts seresnet18 seresnext26ts ecaresnetlight gernet_s repvgg_a0 vovnet39a
            selecsls42 dla46x_c cspresnet50 darknet17 regnetx_002""",
        "segmentation_models_pytorch": "Unet UnetPlusPlus FPN Linknet PSPNet PAN DeepLabV3Plus MAnet",
    }.items()
    for name in names.split()
]
