//! `--cpus`: how many processors, how they are laid out, and where they run.

use serde::{Deserialize, Serialize};
use spec::value::{integer_list, string_list, tuple_list};
use spec::{Facts, Refusal, Spec, Value};

/// vCPUs that the platform can name (x86_64 on KVM).
pub const MAX_VCPUS: u32 = 8192;

spec::spec! {
    /// The machine's processors.
    pub struct CpusSpec: "cpus" {
        flatten {}
        fields {
            /// vCPUs at boot.
            "boot" => boot_vcpus: u32 = 1,
            /// vCPUs that may ever be plugged; as many as at boot when absent.
            "max" => max_vcpus: Option<u32> = None,
            /// Threads per core, cores per die, dies per package, packages.
            "topology" => topology: Option<Topology> = None,
            /// Guest physical address bits, at most what the host has.
            "max_phys_bits" => max_phys_bits: u8 = 46,
            /// Host CPUs that each vCPU may run on.
            "affinity" => affinity: Option<AffinityList> = None,
            /// Optional CPU features; `amx` is not supported yet.
            "features" => features: Features = Features::default(),
            /// Lets the guest run guests of its own, where the host can.
            "nested" => nested: bool = true,
            /// Which threads may share a physical core with the vCPUs: those of the machine, of the vCPU alone, or any.
            "core_scheduling" => core_scheduling: CoreScheduling = CoreScheduling::Vm,
            /// CPU model; only the host's own exists.
            "profile" => profile: Profile = Profile::Host,
        }
        unsupported { "kvm_hyperv" => kvm_hyperv }
    }
}

spec::choice! {
    /// Which tasks may run on a vCPU's sibling hyper-threads.
    pub enum CoreScheduling {
        /// Those of the same machine.
        #[default]
        Vm = "vm",
        /// Only the vCPU itself.
        Vcpu = "vcpu",
        /// Any.
        Off = "off",
    }
}

spec::choice! {
    /// CPU models.
    pub enum Profile {
        /// The host's CPU.
        #[default]
        Host = "Host",
    }
}

/// How vCPUs are arranged; the product of the parts is the number of vCPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Topology {
    pub threads_per_core: u16,
    pub cores_per_die: u16,
    pub dies_per_package: u16,
    pub packages: u16,
}

impl Value for Topology {
    const SYNTAX: &'static str = "<threads>:<cores>:<dies>:<packages>";

    fn convert(text: &str) -> Result<Self, String> {
        let parts: Option<Vec<u16>> = text.split(':').map(|p| p.parse().ok()).collect();
        match parts.as_deref() {
            Some(&[threads_per_core, cores_per_die, dies_per_package, packages]) => {
                Ok(Topology { threads_per_core, cores_per_die, dies_per_package, packages })
            }
            _ => Err("expected four numbers such as 2:4:1:1".into()),
        }
    }

    fn show(&self) -> String {
        format!(
            "{}:{}:{}:{}",
            self.threads_per_core, self.cores_per_die, self.dies_per_package, self.packages
        )
    }
}

/// Host CPUs of one vCPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Affinity {
    /// The vCPU.
    pub vcpu: u32,
    /// Host CPUs it may run on.
    pub host_cpus: Vec<usize>,
}

/// Affinities of several vCPUs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AffinityList(pub Vec<Affinity>);

impl Value for AffinityList {
    const SYNTAX: &'static str = "[<vcpu>@[<host cpus>],…]";

    fn convert(text: &str) -> Result<Self, String> {
        let pair = |(vcpu, cpus): (String, String)| {
            let vcpu = vcpu.parse().map_err(|_| format!("{vcpu} is no vCPU number"))?;
            Ok(Affinity { vcpu, host_cpus: integer_list(&cpus)? })
        };
        tuple_list(text)?.into_iter().map(pair).collect::<Result<_, String>>().map(AffinityList)
    }

    fn show(&self) -> String {
        let one = |a: &Affinity| {
            let cpus: Vec<_> = a.host_cpus.iter().map(usize::to_string).collect();
            format!("{}@[{}]", a.vcpu, cpus.join(","))
        };
        format!("[{}]", self.0.iter().map(one).collect::<Vec<_>>().join(","))
    }
}

/// Optional CPU features.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Features {
    /// Advanced Matrix Extensions.
    pub amx: bool,
}

impl Value for Features {
    const SYNTAX: &'static str = "[<feature>,…]";

    fn convert(text: &str) -> Result<Self, String> {
        let mut features = Features::default();
        for name in string_list(text)? {
            match name.as_str() {
                "amx" => features.amx = true,
                other => return Err(format!("Invalid feature in --cpus features list: {other}")),
            }
        }
        Ok(features)
    }

    fn show(&self) -> String {
        if self.amx { "amx" } else { "" }.into()
    }
}

impl CpusSpec {
    /// The number of vCPUs that may ever be plugged.
    pub fn max(&self) -> u32 {
        self.max_vcpus.unwrap_or(self.boot_vcpus)
    }

    /// Host CPUs of one vCPU; empty for any.
    pub fn host_cpus(&self, vcpu: u32) -> &[usize] {
        let list = self.affinity.as_ref().map(|l| l.0.as_slice()).unwrap_or_default();
        list.iter().find(|a| a.vcpu == vcpu).map(|a| a.host_cpus.as_slice()).unwrap_or_default()
    }
}

impl Spec for CpusSpec {
    const FLAG: &'static str = CpusSpec::FLAG;
    const ABOUT: &'static str = CpusSpec::ABOUT;

    fn check(&self, _facts: &Facts) -> Result<(), Refusal> {
        let (boot, max) = (self.boot_vcpus, self.max());
        if boot == 0 {
            return Err(Refusal::invalid("Number of boot vCPUs must be at least 1"));
        }
        if max < boot {
            return Err(Refusal::invalid(format!("Max CPUs ({max}) lower than boot CPUs ({boot})")));
        }
        if max > MAX_VCPUS {
            return Err(Refusal::invalid(format!(
                "Too many CPUs: specified {max} but {MAX_VCPUS} is the limit"
            )));
        }
        if self.features.amx {
            return Err(Refusal::unsupported("--cpus features=[amx]"));
        }
        if self.max_phys_bits < 33 || self.max_phys_bits > 52 {
            return Err(Refusal::invalid(format!(
                "max_phys_bits ({}) not in range of 33 to 52",
                self.max_phys_bits
            )));
        }
        if let Some(t) = &self.topology {
            let parts = [t.threads_per_core, t.cores_per_die, t.dies_per_package, t.packages];
            if parts.contains(&0) {
                return Err(Refusal::invalid("No part of the CPU topology can be zero"));
            }
            if t.threads_per_core > 2 {
                return Err(Refusal::invalid("CPU topology supports at most 2 threads per core"));
            }
            if parts.iter().map(|p| u64::from(*p)).product::<u64>() != u64::from(max) {
                return Err(Refusal::invalid("Product of CPU topology parts does not match maximum vCPU"));
            }
        }
        if let Some(a) = self.affinity.iter().flat_map(|l| &l.0).find(|a| a.vcpu >= max) {
            return Err(Refusal::invalid(format!(
                "affinity names vCPU {}, but the last one is {}",
                a.vcpu,
                max - 1
            )));
        }
        Ok(())
    }
}
