// SPDX-License-Identifier: GPL-2.0
/* The host's TSM: sessions with devices and encrypted links to them, and which interface is whose. */
#include <linux/device.h>
#include <linux/pci.h>
#include <linux/pci-ide.h>
#include <linux/slab.h>
#include "chamber-tsm.h"

struct chamber_pf0 {
	struct pci_tsm_pf0 pf0;
	struct pci_ide *ide;
};

static struct tsm_dev *link_tsm;

static struct chamber_pf0 *to_chamber_pf0(struct pci_dev *pdev)
{
	return container_of(pdev->tsm, struct chamber_pf0, pf0.base_tsm);
}

static struct pci_tsm *link_probe(struct tsm_dev *tsm_dev, struct pci_dev *pdev)
{
	if (is_pci_tsm_pf0(pdev)) {
		struct chamber_pf0 *made __free(kfree) = kzalloc(sizeof(*made), GFP_KERNEL);

		if (!made || pci_tsm_pf0_constructor(pdev, &made->pf0, tsm_dev))
			return NULL;
		return &no_free_ptr(made)->pf0.base_tsm;
	}
	struct pci_tsm *made __free(kfree) = kzalloc(sizeof(*made), GFP_KERNEL);

	if (!made || pci_tsm_link_constructor(pdev, made, tsm_dev))
		return NULL;
	return no_free_ptr(made);
}

static void link_remove(struct pci_tsm *tsm)
{
	if (is_pci_tsm_pf0(tsm->pdev)) {
		struct chamber_pf0 *made = container_of(tsm, struct chamber_pf0, pf0.base_tsm);

		pci_tsm_pf0_destructor(&made->pf0);
		kfree(made);
	} else {
		kfree(tsm);
	}
}

static struct pci_ide *make_stream(struct pci_dev *pdev)
{
	struct pci_ide *ide = pci_ide_stream_alloc(pdev);
	int rc;

	if (!ide)
		return ERR_PTR(-ENOSPC);
	ide->stream_id = ide->host_bridge_stream;
	/* An interface is locked with the stream that its function has by default. */
	ide->partner[PCI_IDE_EP].default_stream = 1;
	rc = pci_ide_stream_register(ide);
	if (rc) {
		pci_ide_stream_free(ide);
		return ERR_PTR(rc);
	}
	pci_ide_stream_setup(pdev, ide);
	pci_ide_stream_setup(pcie_find_root_port(pdev), ide);
	return ide;
}

static int link_connect(struct pci_dev *pdev)
{
	struct chamber_question question = {
		.operation = CHAMBER_TSM_CONNECT, .pdev = pdev, .stream = CHAMBER_TSM_NO_STREAM,
	};
	int rc;

	struct pci_ide *ide __free(pci_ide_stream_release) = NULL;
	/* What is part of the processor's package has no link that could be tapped. */
	if (pdev->ide_cap && pci_pcie_type(pdev) == PCI_EXP_TYPE_ENDPOINT) {
		struct pci_ide *made = make_stream(pdev);

		if (IS_ERR(made))
			return PTR_ERR(made);
		ide = made;
		question.stream = ide->stream_id;
	}
	rc = chamber_tsm_ask(&question);
	if (rc || !ide)
		return rc;
	rc = pci_ide_stream_enable(pcie_find_root_port(pdev), ide);
	if (!rc)
		rc = pci_ide_stream_enable(pdev, ide);
	if (rc) {
		pci_err(pdev, "the stream is not secure\n");
		question.operation = CHAMBER_TSM_DISCONNECT;
		chamber_tsm_ask(&question);
		return rc;
	}
	to_chamber_pf0(pdev)->ide = no_free_ptr(ide);
	return 0;
}

static void link_disconnect(struct pci_dev *pdev)
{
	struct chamber_pf0 *tsm = to_chamber_pf0(pdev);
	struct chamber_question question = {
		.operation = CHAMBER_TSM_DISCONNECT, .pdev = pdev,
		.stream = tsm->ide ? tsm->ide->stream_id : CHAMBER_TSM_NO_STREAM,
	};

	/* Whatever is answered: the stream goes, and with it all that runs over it. */
	chamber_tsm_ask(&question);
	if (tsm->ide)
		pci_ide_stream_release(tsm->ide);
	tsm->ide = NULL;
}

static struct pci_tdi *link_bind(struct pci_dev *pdev, struct kvm *kvm, u32 tdi_id)
{
	struct chamber_question question = {
		.operation = CHAMBER_TSM_BIND, .pdev = pdev, .stream = CHAMBER_TSM_NO_STREAM, .interface = tdi_id,
	};
	int rc;

	struct pci_tdi *tdi __free(kfree) = kzalloc(sizeof(*tdi), GFP_KERNEL);
	if (!tdi)
		return ERR_PTR(-ENOMEM);
	/* What is off can't be locked, and for as long as it is bound its driver must not be able to switch it off. */
	rc = pci_enable_device(pdev);
	if (rc)
		return ERR_PTR(rc);
	pci_set_master(pdev);
	rc = chamber_tsm_ask(&question);
	if (rc) {
		pci_disable_device(pdev);
		return ERR_PTR(rc);
	}
	pci_tsm_tdi_constructor(pdev, tdi, kvm, tdi_id);
	return no_free_ptr(tdi);
}

static void link_unbind(struct pci_tdi *tdi)
{
	struct chamber_question question = {
		.operation = CHAMBER_TSM_UNBIND, .pdev = tdi->pdev, .stream = CHAMBER_TSM_NO_STREAM,
		.interface = tdi->tdi_id,
	};

	chamber_tsm_ask(&question);
	pci_disable_device(tdi->pdev);
	kfree(tdi);
}

static ssize_t link_guest_req(struct pci_tdi *tdi, enum pci_tsm_req_scope scope, sockptr_t req_in, size_t in_len,
			      sockptr_t req_out, size_t out_len, u64 *tsm_code)
{
	struct chamber_question question = {
		.operation = CHAMBER_TSM_GUEST_REQUEST, .pdev = tdi->pdev, .stream = CHAMBER_TSM_NO_STREAM,
		.interface = tdi->tdi_id, .scope = scope, .size = in_len, .room = out_len,
	};
	int rc;

	if (in_len > CHAMBER_TSM_MOST || out_len > CHAMBER_TSM_MOST)
		return -EMSGSIZE;
	void *in __free(kvfree) = kvzalloc(in_len, GFP_KERNEL);
	void *out __free(kvfree) = kvzalloc(out_len, GFP_KERNEL);
	if ((in_len && !in) || (out_len && !out))
		return -ENOMEM;
	if (copy_from_sockptr(in, req_in, in_len))
		return -EFAULT;
	question.data = in;
	question.answer = out;
	rc = chamber_tsm_ask(&question);
	if (tsm_code)
		*tsm_code = question.code;
	if (rc)
		return rc;
	if (question.got && copy_to_sockptr(req_out, out, question.got))
		return -EFAULT;
	return out_len - question.got;
}

static struct pci_tsm_ops link_operations = {
	.probe = link_probe,
	.remove = link_remove,
	.connect = link_connect,
	.disconnect = link_disconnect,
	.bind = link_bind,
	.unbind = link_unbind,
	.guest_req = link_guest_req,
};

/* The core has bind and unbind for VMMs in the kernel, and none calls them here; so this takes the place of one. */

static ssize_t bind_store(struct device *dev, struct device_attribute *attribute, const char *text, size_t size)
{
	struct pci_dev *pdev __free(pci_dev_put) = chamber_tsm_function(text);
	int rc;

	if (!pdev)
		return -ENODEV;
	/* The core compares the guest's VM and never looks into it. */
	rc = pci_tsm_bind(pdev, (struct kvm *)&link_tsm, pci_dev_id(pdev));
	return rc ?: size;
}
static DEVICE_ATTR_WO(bind);

static ssize_t unbind_store(struct device *dev, struct device_attribute *attribute, const char *text, size_t size)
{
	struct pci_dev *pdev __free(pci_dev_put) = chamber_tsm_function(text);

	if (!pdev)
		return -ENODEV;
	pci_tsm_unbind(pdev);
	return size;
}
static DEVICE_ATTR_WO(unbind);

int chamber_link_register(struct device *parent)
{
	struct tsm_dev *made = tsm_register(parent, &link_operations);
	int rc;

	if (IS_ERR(made))
		return PTR_ERR(made);
	rc = device_create_file(&made->dev, &dev_attr_bind) ?: device_create_file(&made->dev, &dev_attr_unbind);
	if (rc)
		tsm_unregister(made);
	else
		link_tsm = made;
	return rc;
}

void chamber_link_unregister(void)
{
	tsm_unregister(link_tsm);
	link_tsm = NULL;
}
