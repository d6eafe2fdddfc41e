"""Distillation methods: the name of each, and its class in a file of its own."""

from __future__ import annotations

from edgedistill.common.plugins import resolve
from edgedistill.objectives.base import (
    Batch,
    Losses,
    Objective,
    Optim,
    Player,
    RewardOf,
    Settings,
    Setup,
)

__all__ = [
    "OBJECTIVES",
    "Batch",
    "Losses",
    "Objective",
    "Optim",
    "Player",
    "RewardOf",
    "Settings",
    "Setup",
    "find",
]

OBJECTIVES = {
    "add": "edgedistill.objectives.adversarial.add:ADD",
    "alpha-flow": "edgedistill.objectives.trajectory.alpha_flow:AlphaFlow",
    "arcflow": "edgedistill.objectives.trajectory.arcflow:ArcFlow",
    "asd": "edgedistill.objectives.combined.asd:ASD",
    "backward-distill": "edgedistill.objectives.trajectory.backward_distill:BackwardDistill",
    "boot": "edgedistill.objectives.trajectory.boot:BOOT",
    "cd": "edgedistill.objectives.consistency.consistency:CD",
    "cdm": "edgedistill.objectives.matching.cdm:CDM",
    "ct": "edgedistill.objectives.consistency.consistency:CT",
    "ctm": "edgedistill.objectives.consistency.ctm:CTM",
    "d-ode": "edgedistill.objectives.solvers.d_ode:DODE",
    "ddgan": "edgedistill.objectives.adversarial.ddgan:DDGAN",
    "decoder": "edgedistill.objectives.compression.decoder:TinyDecoder",
    "decoupled-dmd": "edgedistill.objectives.matching.decoupled_dmd:DecoupledDMD",
    "diff-instruct": "edgedistill.objectives.matching.vsd:DiffInstruct",
    "diffusion-decoder": "edgedistill.objectives.compression.diffusion_decoder:OneStepDecoder",
    "diffusion-dpo": "edgedistill.objectives.preference.diffusion_dpo:DiffusionDPO",
    "diffusion2gan": "edgedistill.objectives.adversarial.diffusion2gan:Diffusion2GAN",
    "disback": "edgedistill.objectives.matching.disback:DisBack",
    "dmd": "edgedistill.objectives.matching.dmd:DMD",
    "dmd2": "edgedistill.objectives.matching.dmd2:DMD2",
    "dp-dmd": "edgedistill.objectives.combined.dp_dmd:DPDMD",
    "drifting": "edgedistill.objectives.kernels.drifting:Drifting",
    "emd": "edgedistill.objectives.matching.emd:EMD",
    "f-distill": "edgedistill.objectives.matching.f_distill:FDistill",
    "flash": "edgedistill.objectives.adversarial.flash:Flash",
    "flow-map": "edgedistill.objectives.trajectory.flow_map:FlowMap",
    "free-flow": "edgedistill.objectives.trajectory.free_flow:FreeFlow",
    "gas": "edgedistill.objectives.solvers.gas:GAS",
    "gdd": "edgedistill.objectives.adversarial.gdd:GDD",
    "guidance": "edgedistill.objectives.trajectory.guidance:Guidance",
    "guide-adapter": "edgedistill.objectives.trajectory.guide_adapter:GuideAdapter",
    "hipa": "edgedistill.objectives.trajectory.hipa:HiPA",
    "icd": "edgedistill.objectives.consistency.icd:ICD",
    "imf": "edgedistill.objectives.trajectory.imf:IMF",
    "instaflow": "edgedistill.objectives.trajectory.instaflow:InstaFlow",
    "kd": "edgedistill.objectives.trajectory.kd:KD",
    "ladd": "edgedistill.objectives.adversarial.ladd:LADD",
    "lcm": "edgedistill.objectives.consistency.lcm:LCM",
    "lightning": "edgedistill.objectives.adversarial.lightning:Lightning",
    "meanflow": "edgedistill.objectives.trajectory.flow_map:MeanFlow",
    "moment-matching": "edgedistill.objectives.matching.moment_matching:MomentMatching",
    "moment-matching-gradient": (
        "edgedistill.objectives.matching.moment_matching:MomentMatchingGradient"
    ),
    "nfsd": "edgedistill.objectives.matching.sds:NFSD",
    "oss": "edgedistill.objectives.solvers.oss:OSS",
    "pcm": "edgedistill.objectives.consistency.pcm:PCM",
    "pcm-gan": "edgedistill.objectives.adversarial.pcm_gan:PCMGAN",
    "pdm": "edgedistill.objectives.matching.pdm:PDM",
    "pg-sb": "edgedistill.objectives.matching.vsd:PGSB",
    "phased-dmd": "edgedistill.objectives.matching.phased_dmd:PhasedDMD",
    "pi-flow": "edgedistill.objectives.trajectory.pi_flow:PiFlow",
    "progressive": "edgedistill.objectives.trajectory.progressive:Progressive",
    "pso": "edgedistill.objectives.preference.pso:PSO",
    "qat": "edgedistill.objectives.compression.qat:QAT",
    "rcm": "edgedistill.objectives.combined.rcm:RCM",
    "reflow": "edgedistill.objectives.trajectory.reflow:Reflow",
    "scm": "edgedistill.objectives.consistency.scm:SCM",
    "scott": "edgedistill.objectives.consistency.consistency:SCott",
    "sds": "edgedistill.objectives.matching.sds:SDS",
    "self-corrected": "edgedistill.objectives.adversarial.self_corrected:SelfCorrected",
    "sfd": "edgedistill.objectives.trajectory.sfd:SFD",
    "shortcut": "edgedistill.objectives.trajectory.shortcut:Shortcut",
    "shrink": "edgedistill.objectives.compression.shrink:Shrink",
    "sid": "edgedistill.objectives.matching.sid:SiD",
    "slam": "edgedistill.objectives.consistency.slam:SLAM",
    "slimflow": "edgedistill.objectives.trajectory.slimflow:SlimFlow",
    "swd": "edgedistill.objectives.matching.swd:SWD",
    "swiftbrush": "edgedistill.objectives.matching.vsd:SwiftBrush",
    "tbcm": "edgedistill.objectives.consistency.tbcm:TBCM",
    "tdd": "edgedistill.objectives.consistency.pcm:TDD",
    "tdm": "edgedistill.objectives.matching.tdm:TDM",
    "tract": "edgedistill.objectives.consistency.tract:TRACT",
    "traflow": "edgedistill.objectives.trajectory.traflow:TraFlow",
    "twinflow": "edgedistill.objectives.matching.twinflow:TwinFlow",
    "ufogen": "edgedistill.objectives.adversarial.ufogen:UFOGen",
    "uni-instruct": "edgedistill.objectives.matching.uni_instruct:UniInstruct",
    "vsd": "edgedistill.objectives.matching.vsd:VSD",
}
"""Method classes by name, imported on demand. Others join by the entry-point group
`edgedistill.objectives`."""


def find(name: str) -> type[Objective]:
    """Return the method called `name`; ValueError names the choices."""
    kind: type[Objective] = resolve("method", OBJECTIVES, name, "edgedistill.objectives")
    return kind
