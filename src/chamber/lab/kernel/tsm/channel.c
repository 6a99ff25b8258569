// SPDX-License-Identifier: GPL-2.0
/* Hands operations of the TSM core to the process that has /dev/chamber-tsm open, and sends its data objects. */
#include <linux/completion.h>
#include <linux/fs.h>
#include <linux/list.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/wait.h>
#include "chamber-tsm.h"

struct asked {
	struct list_head list;
	struct chamber_question *question;
	struct completion done;
	u32 number;
	bool told;
	int status;
};

/* Of the three below. What is on the list belongs to whoever waits, who takes it off. */
static DEFINE_MUTEX(asked_lock);
static LIST_HEAD(all_asked);
static unsigned int untold;
static bool is_open;
static DECLARE_WAIT_QUEUE_HEAD(has_question);
/* One process after the other: registering takes locks that an operation under way holds. */
static DEFINE_MUTEX(open_lock);

int chamber_tsm_ask(struct chamber_question *question)
{
	struct asked asked = { .question = question, .status = -ENXIO };
	static u32 last;
	int rc;

	init_completion(&asked.done);
	scoped_guard(mutex, &asked_lock) {
		if (!is_open)
			return -ENXIO;
		asked.number = ++last;
		list_add_tail(&asked.list, &all_asked);
		WRITE_ONCE(untold, untold + 1);
	}
	wake_up_interruptible(&has_question);
	rc = wait_for_completion_killable(&asked.done);
	guard(mutex)(&asked_lock);
	list_del(&asked.list);
	if (!asked.told)
		WRITE_ONCE(untold, untold - 1);
	return completion_done(&asked.done) || !rc ? asked.status : -EINTR;
}

struct pci_dev *chamber_tsm_function(const char *name)
{
	unsigned int domain, bus, slot, function;

	if (sscanf(name, "%x:%x:%x.%x", &domain, &bus, &slot, &function) != 4 || bus > 0xff || slot > 0x1f || function > 7)
		return NULL;
	return pci_get_domain_bus_and_slot(domain, bus, PCI_DEVFN(slot, function));
}

static u32 whole_id(struct pci_dev *pdev)
{
	return pdev ? (u32)pci_domain_nr(pdev->bus) << 16 | pci_dev_id(pdev) : 0;
}

static struct asked *find_untold(void)
{
	struct asked *asked;

	list_for_each_entry(asked, &all_asked, list)
		if (!asked->told)
			return asked;
	return NULL;
}

static struct asked *find_told(u32 number)
{
	struct asked *asked;

	list_for_each_entry(asked, &all_asked, list)
		if (asked->told && asked->number == number && !completion_done(&asked->done))
			return asked;
	return NULL;
}

static ssize_t channel_read(struct file *file, char __user *to, size_t count, loff_t *at)
{
	struct chamber_tsm_request request;
	struct chamber_question *question;
	struct asked *asked;
	int rc;

	for (;;) {
		rc = wait_event_interruptible(has_question, READ_ONCE(untold));
		if (rc)
			return rc;
		guard(mutex)(&asked_lock);
		asked = find_untold();
		if (!asked)
			continue;
		question = asked->question;
		request = (struct chamber_tsm_request) {
			.number = asked->number,
			.operation = question->operation,
			.function = whole_id(question->pdev),
			.port = whole_id(pcie_find_root_port(question->pdev)),
			.stream = question->stream,
			.interface = question->interface,
			.scope = question->scope,
			.room = question->room,
			.size = question->size,
		};
		if (count < sizeof(request) + question->size)
			return -EMSGSIZE;
		if (copy_to_user(to, &request, sizeof(request)) ||
		    copy_to_user(to + sizeof(request), question->data, question->size))
			return -EFAULT;
		asked->told = true;
		WRITE_ONCE(untold, untold - 1);
		return sizeof(request) + question->size;
	}
}

static ssize_t channel_write(struct file *file, const char __user *from, size_t count, loff_t *at)
{
	struct chamber_tsm_answer answer;
	struct chamber_question *question;
	struct asked *asked;

	if (count < sizeof(answer))
		return -EINVAL;
	if (copy_from_user(&answer, from, sizeof(answer)))
		return -EFAULT;
	if (answer.size != count - sizeof(answer) || answer.status > 0 || answer.status < -MAX_ERRNO)
		return -EINVAL;
	guard(mutex)(&asked_lock);
	asked = find_told(answer.number);
	if (!asked)
		return -ESRCH;	/* whoever asked was killed meanwhile */
	question = asked->question;
	if (answer.size > question->room)
		return -EMSGSIZE;
	if (copy_from_user(question->answer, from + sizeof(answer), answer.size))
		return -EFAULT;
	question->got = answer.size;
	question->code = answer.code;
	asked->status = answer.status;
	complete(&asked->done);
	return count;
}

static long channel_transfer(const struct chamber_tsm_transfer *transfer)
{
	struct asked *asked;
	int got;

	if (!transfer->request_size || transfer->request_size > CHAMBER_TSM_MOST || !transfer->response_size ||
	    transfer->response_size > CHAMBER_TSM_MOST || transfer->type > U8_MAX)
		return -EINVAL;
	void *request __free(kvfree) = vmemdup_user(u64_to_user_ptr(transfer->request), transfer->request_size);
	if (IS_ERR(request))
		return PTR_ERR(no_free_ptr(request));
	void *response __free(kvfree) = kvzalloc(transfer->response_size, GFP_KERNEL);
	if (!response)
		return -ENOMEM;
	/* Whoever asked keeps the function and its context, and can't leave before this is done. */
	guard(mutex)(&asked_lock);
	asked = find_told(transfer->number);
	if (!asked)
		return -ESRCH;
	got = pci_tsm_doe_transfer(asked->question->pdev, transfer->type, request, transfer->request_size,
				   response, transfer->response_size);
	if (got > 0 && copy_to_user(u64_to_user_ptr(transfer->response), response,
				    min_t(u32, got, transfer->response_size)))
		return -EFAULT;
	return got;
}

static long channel_ioctl(struct file *file, unsigned int command, unsigned long argument)
{
	struct chamber_tsm_transfer transfer;

	if (command != CHAMBER_TSM_TRANSFER)
		return -ENOTTY;
	if (copy_from_user(&transfer, (void __user *)argument, sizeof(transfer)))
		return -EFAULT;
	return channel_transfer(&transfer);
}

static struct miscdevice channel;

static void close_channel(void)
{
	struct asked *asked;

	guard(mutex)(&asked_lock);
	is_open = false;
	list_for_each_entry(asked, &all_asked, list)
		complete(&asked->done);
}

static int channel_open(struct inode *inode, struct file *file)
{
	int rc;

	guard(mutex)(&open_lock);
	scoped_guard(mutex, &asked_lock) {
		if (is_open)
			return -EBUSY;
		is_open = true;
	}
	rc = chamber_link_register(channel.this_device);
	if (!rc) {
		rc = chamber_guest_register(channel.this_device);
		if (rc)
			chamber_link_unregister();
	}
	if (rc)
		close_channel();
	return rc ?: nonseekable_open(inode, file);
}

static int channel_release(struct inode *inode, struct file *file)
{
	guard(mutex)(&open_lock);
	/* First nobody is there any more, so that nobody who holds a lock waits for an answer. */
	close_channel();
	chamber_guest_unregister();
	chamber_link_unregister();
	return 0;
}

static const struct file_operations channel_operations = {
	.owner = THIS_MODULE,
	.open = channel_open,
	.release = channel_release,
	.read = channel_read,
	.write = channel_write,
	.unlocked_ioctl = channel_ioctl,
};

static struct miscdevice channel = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "chamber-tsm",
	.mode = 0600,
	.fops = &channel_operations,
};
module_misc_device(channel);

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("A TSM whose operations are done in user space");
