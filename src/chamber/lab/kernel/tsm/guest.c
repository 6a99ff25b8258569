// SPDX-License-Identifier: GPL-2.0
/*
 * The TSM of the guest that a function is bound to: locks it, shows its report, accepts and unlocks it.
 *
 * The core takes lock and unlock of such a TSM (devsec_ops), and has nothing yet that calls them, nor a word for what
 * comes after the lock. Files of this TSM's own do, until it has. A guest asks its host, who hands it on to the TSM
 * (pci_tsm_guest_req): here host and guest are one kernel, so that what would be an exit from the VM is a call.
 */
#include <linux/device.h>
#include <linux/list.h>
#include <linux/mutex.h>
#include <linux/slab.h>
#include <linux/sysfs.h>
#include "chamber-tsm.h"

struct locked {
	struct pci_tsm tsm;
	struct list_head list;
	void *report;
	size_t size;
};

static struct tsm_dev *guest_tsm;
static DEFINE_MUTEX(guest_lock);
static LIST_HEAD(all_locked);

/* Returns how much was answered, or an error. */
static ssize_t ask_host(struct pci_dev *pdev, enum pci_tsm_req_scope scope, u8 what, void *answer, size_t room)
{
	u64 code = 0;
	ssize_t left = pci_tsm_guest_req(pdev, scope, KERNEL_SOCKPTR(&what), sizeof(what), KERNEL_SOCKPTR(answer), room,
					 &code);

	return left < 0 ? left : room - left;
}

static struct pci_tsm *guest_lock_function(struct tsm_dev *tsm_dev, struct pci_dev *pdev)
{
	ssize_t size;

	struct locked *made __free(kfree) = kzalloc(sizeof(*made), GFP_KERNEL);
	void *report __free(kvfree) = kvzalloc(CHAMBER_TSM_MOST, GFP_KERNEL);
	if (!made || !report)
		return ERR_PTR(-ENOMEM);
	size = ask_host(pdev, PCI_TSM_REQ_STATE_CHANGE, CHAMBER_TSM_LOCK, NULL, 0);
	if (size >= 0)
		size = ask_host(pdev, PCI_TSM_REQ_INFO, CHAMBER_TSM_REPORT, report, CHAMBER_TSM_MOST);
	if (size < 0)
		return ERR_PTR(size);
	made->tsm.pdev = pci_dev_get(pdev);
	made->tsm.tsm_dev = tsm_dev;
	made->report = no_free_ptr(report);
	made->size = size;
	return &no_free_ptr(made)->tsm;
}

static void guest_unlock_function(struct pci_tsm *tsm)
{
	struct locked *locked = container_of(tsm, struct locked, tsm);

	ask_host(tsm->pdev, PCI_TSM_REQ_STATE_CHANGE, CHAMBER_TSM_STOP, NULL, 0);
	pci_dev_put(tsm->pdev);
	kvfree(locked->report);
	kfree(locked);
}

static struct pci_tsm_ops guest_operations = {
	.lock = guest_lock_function,
	.unlock = guest_unlock_function,
};

static struct locked *find_locked(struct pci_dev *pdev)
{
	struct locked *locked;

	list_for_each_entry(locked, &all_locked, list)
		if (locked->tsm.pdev == pdev)
			return locked;
	return NULL;
}

static ssize_t lock_store(struct device *dev, struct device_attribute *attribute, const char *text, size_t size)
{
	struct pci_dev *pdev __free(pci_dev_put) = chamber_tsm_function(text);
	struct pci_tsm *made;

	if (!pdev)
		return -ENODEV;
	guard(mutex)(&guest_lock);
	if (find_locked(pdev))
		return -EBUSY;
	made = guest_operations.lock(guest_tsm, pdev);
	if (IS_ERR(made))
		return PTR_ERR(made);
	list_add(&container_of(made, struct locked, tsm)->list, &all_locked);
	return size;
}
static DEVICE_ATTR_WO(lock);

static ssize_t accept_store(struct device *dev, struct device_attribute *attribute, const char *text, size_t size)
{
	struct pci_dev *pdev __free(pci_dev_put) = chamber_tsm_function(text);
	ssize_t rc;

	if (!pdev)
		return -ENODEV;
	guard(mutex)(&guest_lock);
	if (!find_locked(pdev))
		return -ENXIO;
	rc = ask_host(pdev, PCI_TSM_REQ_STATE_CHANGE, CHAMBER_TSM_START, NULL, 0);
	return rc < 0 ? rc : size;
}
static DEVICE_ATTR_WO(accept);

static ssize_t unlock_store(struct device *dev, struct device_attribute *attribute, const char *text, size_t size)
{
	struct pci_dev *pdev __free(pci_dev_put) = chamber_tsm_function(text);
	struct locked *locked;

	if (!pdev)
		return -ENODEV;
	guard(mutex)(&guest_lock);
	locked = find_locked(pdev);
	if (!locked)
		return -ENXIO;
	list_del(&locked->list);
	guest_operations.unlock(&locked->tsm);
	return size;
}
static DEVICE_ATTR_WO(unlock);

/* The report of the function that was locked last. */
static ssize_t report_read(struct file *file, struct kobject *kobject, const struct bin_attribute *attribute, char *to,
			   loff_t at, size_t size)
{
	struct locked *locked;

	guard(mutex)(&guest_lock);
	locked = list_first_entry_or_null(&all_locked, struct locked, list);
	return locked ? memory_read_from_buffer(to, size, &at, locked->report, locked->size) : -ENXIO;
}
static const BIN_ATTR_ADMIN_RO(report, 0);

int chamber_guest_register(struct device *parent)
{
	struct tsm_dev *made = tsm_register(parent, &guest_operations);
	int rc;

	if (IS_ERR(made))
		return PTR_ERR(made);
	guest_tsm = made;
	rc = device_create_file(&made->dev, &dev_attr_lock) ?: device_create_file(&made->dev, &dev_attr_accept) ?:
	     device_create_file(&made->dev, &dev_attr_unlock) ?: device_create_bin_file(&made->dev, &bin_attr_report);
	if (rc)
		chamber_guest_unregister();
	return rc;
}

void chamber_guest_unregister(void)
{
	struct locked *locked, *next;

	/* First the files: nobody locks anything from then on. */
	tsm_unregister(guest_tsm);
	guest_tsm = NULL;
	guard(mutex)(&guest_lock);
	list_for_each_entry_safe(locked, next, &all_locked, list) {
		list_del(&locked->list);
		guest_operations.unlock(&locked->tsm);
	}
}
