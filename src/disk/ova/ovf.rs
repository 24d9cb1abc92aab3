//! What an OVF descriptor says of a machine: its disks and their files, processors and memory (DMTF DSP0243, Open
//! Virtualization Format Specification, 1.x and 2.x).

use crate::disk::Hardware;
use crate::error::{Error, Result};
use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};

/// The longest descriptor, in bytes.
pub(super) const MAX_LEN: u64 = 8 << 20;
/// How deep elements may be nested.
const MAX_DEPTH: usize = 64;
/// The most elements and attributes.
const MAX_NODES: usize = 200_000;
/// The most disks of a machine.
const MAX_DISKS: usize = 256;
/// The most items of its hardware that are looked at.
const MAX_ITEMS: usize = 4096;

/// `ResourceType` of CIM: processor, memory, disk drive.
const PROCESSOR: &str = "3";
const MEMORY: &str = "4";
const DISK: &str = "17";

/// What a descriptor says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Ovf {
    pub(super) hardware: Hardware,
    /// In the order in which they are attached.
    pub(super) disks: Vec<OvfDisk>,
}

/// A disk of the machine.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct OvfDisk {
    pub(super) id: String,
    /// `None` for a disk that was empty, and has no file.
    pub(super) href: Option<String>,
    /// Length in bytes, where the descriptor has a number.
    pub(super) capacity: Option<u64>,
}

impl Ovf {
    /// Reads a descriptor.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if it is no XML or refers to what is not there, [`Error::Unsupported`] naming what is not read.
    pub(super) fn from_bytes(text: &[u8]) -> Result<Self> {
        let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
        let text = str::from_utf8(text)
            .map_err(|e| Error::corrupt("the OVF is not in UTF-8", e.valid_up_to() as u64))?;
        let root = Element::parse(text)?;
        if root.name != "Envelope" {
            return Err(Error::corrupt(
                format!("an OVF that begins with {:?}", root.name),
                0,
            ));
        }
        let mut systems = Vec::new();
        root.find_all("VirtualSystem", &mut systems);
        let [system] = systems.as_slice() else {
            return Err(Error::unsupported(format!(
                "an OVF with {} machines, where one is needed",
                systems.len()
            ))
            .hint("unpack it, and give the disks of one machine: DISK1+DISK2"));
        };
        let section = system.child("VirtualHardwareSection");
        let items: Vec<&Element> = section.map_or_else(Vec::new, |s| {
            let items = s.children.iter();
            let items = items.filter(|c| matches!(c.name.as_str(), "Item" | "StorageItem"));
            items.take(MAX_ITEMS).collect()
        });
        Ok(Self {
            hardware: hardware(system, &items),
            disks: disks(&root, &items)?,
        })
    }
}

fn hardware(system: &Element, items: &[&Element]) -> Hardware {
    // An item of a named configuration is an alternative to the one without.
    let item = |kind: &str| {
        let of_kind = || {
            items
                .iter()
                .filter(move |i| i.text_of("ResourceType") == Some(kind))
        };
        of_kind()
            .find(|i| i.attribute("configuration").is_none())
            .or_else(|| of_kind().next())
    };
    let quantity = |i: &&Element| i.text_of("VirtualQuantity")?.parse::<u64>().ok();
    let memory = || {
        let item = item(MEMORY)?;
        let unit = units(item.text_of("AllocationUnits").unwrap_or("MegaBytes"))?;
        quantity(item)?.checked_mul(unit)
    };
    let os = || {
        let section = system.child("OperatingSystemSection")?;
        let text = section.text_of("Description").filter(|t| !t.is_empty());
        text.or_else(|| section.attribute("osType")).map(str::to_owned)
    };
    let name = system.text_of("Name").filter(|n| !n.is_empty());
    Hardware {
        name: name.or_else(|| system.attribute("id")).map(str::to_owned),
        cpus: item(PROCESSOR)
            .and_then(quantity)
            .and_then(|n| u32::try_from(n).ok()),
        memory: memory(),
        os: os(),
    }
}

/// How many bytes an allocation unit is: `byte * 2^20`, `MegaBytes`, ...
fn units(text: &str) -> Option<u64> {
    let text = text.trim().to_ascii_lowercase();
    if let Some(rest) = text.strip_prefix("byte") {
        let rest = rest.trim_start_matches('s').trim();
        if rest.is_empty() {
            return Some(1);
        }
        let (base, power) = rest.strip_prefix('*')?.split_once('^')?;
        let base: u64 = base.trim().parse().ok()?;
        return base.checked_pow(power.trim().parse().ok()?);
    }
    match text.as_str() {
        "kilobytes" | "kb" => Some(1 << 10),
        "megabytes" | "mb" => Some(1 << 20),
        "gigabytes" | "gb" => Some(1 << 30),
        "terabytes" | "tb" => Some(1 << 40),
        _ => None,
    }
}

/// The disks of `DiskSection`: those that the hardware has, by controller and place on it, then the others.
fn disks(root: &Element, items: &[&Element]) -> Result<Vec<OvfDisk>> {
    let mut found = Vec::new();
    root.find_all("Disk", &mut found);
    if found.is_empty() || found.len() > MAX_DISKS {
        return Err(Error::unsupported(format!("an OVF with {} disks", found.len())));
    }
    let mut files = Vec::new();
    root.find_all("File", &mut files);
    // Where each disk is attached: the controller's place among the items, the number on it, the item's own place.
    let place = |id: &str| {
        let drive = |i: &&&Element| {
            let uses = i.text_of("HostResource").and_then(|r| r.rsplit('/').next());
            i.text_of("ResourceType") == Some(DISK) && uses == Some(id)
        };
        let own = items.iter().position(|i| drive(&i))?;
        let item = items.get(own)?;
        let parent = item.text_of("Parent");
        let controller = items.iter().position(|i| {
            parent.is_some() && i.text_of("InstanceID").or_else(|| i.text_of("InstanceId")) == parent
        });
        let number = item
            .text_of("AddressOnParent")
            .and_then(|a| a.parse::<u64>().ok());
        Some((controller.unwrap_or(usize::MAX), number.unwrap_or(u64::MAX), own))
    };
    let mut disks = Vec::new();
    for disk in found {
        let id = disk.attribute("diskId").unwrap_or_default();
        if disk.attribute("parentRef").is_some_and(|p| !p.is_empty()) {
            let what = format!("disk {id:?} of the OVF, which is a difference to another one");
            return Err(Error::unsupported(what));
        }
        let capacity = || {
            let units = units(disk.attribute("capacityAllocationUnits").unwrap_or("byte"))?;
            disk.attribute("capacity")?
                .parse::<u64>()
                .ok()?
                .checked_mul(units)
        };
        let href = match disk.attribute("fileRef").filter(|r| !r.is_empty()) {
            None => None,
            Some(reference) => {
                let file = files.iter().find(|f| f.attribute("id") == Some(reference));
                let file = file.ok_or_else(|| {
                    Error::corrupt(
                        format!("disk {id:?} of the OVF is in file {reference:?}, which is not listed"),
                        0,
                    )
                })?;
                if file.attribute("chunkSize").is_some() {
                    return Err(Error::unsupported(format!(
                        "file {reference:?} of the OVF, which is in chunks"
                    )));
                }
                let href = file.attribute("href").filter(|h| !h.is_empty());
                Some(
                    href.ok_or_else(|| {
                        Error::corrupt(format!("file {reference:?} of the OVF has no name"), 0)
                    })?
                    .to_owned(),
                )
            }
        };
        disks.push((
            place(id),
            OvfDisk {
                id: id.to_owned(),
                href,
                capacity: capacity(),
            },
        ));
    }
    // What is attached comes first, `None` last; a stable sort leaves the others as they stand.
    disks.sort_by_key(|(place, _)| (place.is_none(), *place));
    Ok(disks.into_iter().map(|(_, disk)| disk).collect())
}

/// An element with local names: what namespace it is in does not matter here.
#[derive(Debug, Default)]
struct Element {
    name: String,
    attributes: Vec<(String, String)>,
    text: String,
    children: Vec<Element>,
}

impl Element {
    fn parse(text: &str) -> Result<Self> {
        let mut reader = Reader::from_str(text);
        let mut open = vec![Self::default()];
        let mut nodes = 0;
        loop {
            let at = reader.buffer_position();
            let bad = |e: quick_xml::Error| {
                Error::corrupt(format!("the OVF is no XML that is well-formed ({e})"), at)
            };
            let event = reader.read_event().map_err(bad)?;
            let empty = matches!(event, Event::Empty(_));
            match event {
                Event::Start(start) | Event::Empty(start) => {
                    let element = Self::begin(&start, at)?;
                    nodes += 1 + element.attributes.len();
                    if nodes > MAX_NODES || open.len() > MAX_DEPTH {
                        return Err(Error::unsupported("an OVF with too many elements, or too deep"));
                    }
                    match open.last_mut() {
                        Some(parent) if empty => parent.children.push(element),
                        _ => open.push(element),
                    }
                }
                Event::End(_) => {
                    if let Some(element) = open.pop()
                        && let Some(parent) = open.last_mut()
                    {
                        parent.children.push(element);
                    }
                }
                Event::Text(part) => Self::add(&mut open, &part.xml10_content()),
                Event::CData(part) => Self::add(&mut open, &part.xml10_content()),
                Event::GeneralRef(name) => {
                    let entity = format!("&{};", name.xml10_content());
                    // What is no entity of XML itself stands for itself: there are no others without a DTD.
                    let value =
                        quick_xml::escape::unescape(&entity).map_or(entity.clone(), |v| v.into_owned());
                    Self::add(&mut open, &value);
                }
                Event::Eof => break,
                _ => {}
            }
        }
        let mut roots = open
            .pop()
            .filter(|_| open.is_empty())
            .map_or_else(Vec::new, |r| r.children);
        roots.pop().filter(|_| roots.is_empty()).ok_or_else(|| {
            Error::corrupt(
                "the OVF ends in the middle, or has no root element",
                text.len() as u64,
            )
        })
    }

    fn begin(start: &BytesStart<'_>, at: u64) -> Result<Self> {
        let mut attributes = Vec::new();
        for attribute in start.attributes().with_checks(false) {
            let value = attribute.ok().and_then(|a| {
                let value = a.normalized_value(quick_xml::XmlVersion::Implicit1_0).ok()?;
                Some((a.key.local_name().into_inner().to_owned(), value.into_owned()))
            });
            attributes.push(value.ok_or_else(|| Error::corrupt("an attribute of the OVF", at))?);
            if attributes.len() > MAX_NODES {
                break;
            }
        }
        Ok(Self {
            name: start.local_name().into_inner().to_owned(),
            attributes,
            ..Self::default()
        })
    }

    fn add(open: &mut [Self], text: &str) {
        if let Some(element) = open.last_mut() {
            element.text.push_str(text);
        }
    }

    fn child(&self, name: &str) -> Option<&Self> {
        self.children.iter().find(|c| c.name == name)
    }

    fn text_of(&self, child: &str) -> Option<&str> {
        self.child(child).map(|c| c.text.trim())
    }

    fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.as_str())
    }

    /// All elements of this name below this one, which are not below another of that name.
    fn find_all<'a>(&'a self, name: &str, found: &mut Vec<&'a Self>) {
        for child in &self.children {
            if child.name == name {
                found.push(child);
            } else {
                child.find_all(name, found);
            }
        }
    }
}
